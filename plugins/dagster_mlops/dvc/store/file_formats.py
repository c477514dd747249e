"""Dataframes, tables, bytes and files to and from one file on disk."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.failures import raised_as
from dagster_mlops.dvc.lazy import csv, ds, pa, pandas, parquet, polars
from dagster_mlops.errors import DatasetError

_FRAMES = ("pandas", "pyarrow", "polars")
_FRAME_FILES = (".parquet", ".csv")
# Rows of a parquet row group, which are in memory together when a stream is written. A constant, so that the same rows
# give the same bytes as a table and as a stream.
_GROUP = 2**18


def write(value: Any, file: Path, *, name: str) -> tuple[int | None, dg.TableSchema | None]:
    """Write `value` to `file` in the format of the suffix of `name`; returns its rows and columns if it has any.

    The same frame gives the same bytes. Levels of a pandas index that have a name become columns, others are left out.
    A polars ``LazyFrame``, pyarrow ``RecordBatchReader`` or ``Dataset`` is written as it is computed, one row group in
    memory at a time; a ``Path`` is copied by the operating system.

    Raises:
        DatasetError: this type cannot be written, or the frame does not fit into the file format.
    """
    if isinstance(value, Path):
        if not value.exists():
            raise DatasetError(
                f"{name} cannot be stored from {value}, which does not exist. Return a path after writing to it."
            )
        shutil.copytree(value, file) if value.is_dir() else shutil.copyfile(value, file)
        return described(file, name)
    if isinstance(value, bytes | bytearray | str):
        file.write_bytes(value.encode() if isinstance(value, str) else value)
        return described(file, name)
    if _library(type(value)) not in _FRAMES or not name.endswith(_FRAME_FILES):
        raise DatasetError(
            f"{name} cannot be stored from {type(value).__module__}.{type(value).__qualname__}. Return a pandas, "
            "pyarrow or polars frame (to a .parquet or .csv path), bytes, a string, or the path of a file you wrote."
        )
    schema, batches = _stream(value, name)
    suffix, rows = name.rpartition(".")[2], 0
    if suffix == "csv":
        new_writer = partial(csv.CSVWriter, str(file), schema)
    else:
        # Readers based on DuckDB, such as Feast's, refuse nanoseconds. A frame with nanoseconds raises instead of being
        # rounded silently.
        options = {"coerce_timestamps": "us", "compression": "zstd"}
        new_writer = partial(parquet.ParquetWriter, str(file), schema, **options)
    try:
        with new_writer() as writer:
            for group in _groups(batches, schema):
                # One chunk per column, so that the bytes do not depend on the sizes of the batches.
                writer.write_table(group.combine_chunks(), _GROUP)
                rows += group.num_rows
    except pa.ArrowInvalid as error:
        raise DatasetError(
            f"{name} cannot be written as {suffix}: {error}. If a timestamp has nanoseconds, round it first: "
            "frame[column].dt.floor('us')."
        ) from error
    return rows, _columns(schema)


def read(files: Sequence[Path], kind: Any, *, name: str) -> Any:
    """Read files as the type `kind` of an annotation: a frame or table of all of them, else a single file's content.

    A polars ``LazyFrame``, a pyarrow ``Dataset`` or ``RecordBatchReader`` reads nothing yet. A folder as a frame is all
    the parquet (else csv) files in it, in the order of their names.

    Raises:
        DatasetError: this type cannot be read, or not from several files.
    """
    library = _library(kind)
    if library not in _FRAMES and name.endswith(_FRAME_FILES) and kind not in (Path, bytes, str):
        library = "pandas"  # no annotation, or one like Any
    if library in _FRAMES:
        files, suffix = _frame_files(files, name)
        is_csv = suffix == ".csv"
        if library == "pandas":
            frames = [(pandas.read_csv if is_csv else pandas.read_parquet)(file) for file in files]
            return frames[0] if len(frames) == 1 else pandas.concat(frames, ignore_index=True)
        if library == "polars":
            scan = polars.scan_csv if is_csv else polars.scan_parquet
            lazy = polars.concat([scan(file) for file in files])
            return lazy if kind is polars.LazyFrame else lazy.collect()
        if kind in (ds.Dataset, ds.FileSystemDataset, pa.RecordBatchReader):
            dataset = ds.dataset([str(file) for file in files], format=suffix.removeprefix("."))
            return dataset.scanner().to_reader() if kind is pa.RecordBatchReader else dataset
        load = csv.read_csv if is_csv else parquet.read_table
        return pa.concat_tables([load(str(file)) for file in files])
    if len(files) > 1:
        raise DatasetError(
            f"{name} and {len(files) - 1} more partitions cannot be combined as {kind}. Annotate the argument as a "
            "dataframe, or as dict[str, …] to get one value per partition."
        )
    if kind in (bytes, str) and files[0].is_dir():
        raise DatasetError(f"{name} is a folder and cannot be loaded as {kind.__name__}. Annotate it as Path.")
    if kind is bytes:
        return files[0].read_bytes()
    return files[0].read_text() if kind is str else files[0]


def described(file: Path, name: str) -> tuple[int | None, dg.TableSchema | None]:
    """Rows and columns of a parquet file, or of a folder of only such files, from the footers; else None, None.

    Raises:
        DatasetError: `name` ends in .parquet, but a file is not parquet.
    """
    files = sorted(part for part in file.rglob("*") if part.is_file()) if file.is_dir() else [file]
    names = [part.name for part in files] if file.is_dir() else [name]
    if not files or not all(part.endswith(".parquet") for part in names):
        return None, None
    with raised_as(DatasetError, f"{name} is not a parquet file", pa.ArrowInvalid):
        footers = [parquet.read_metadata(str(part)) for part in files]
    return sum(footer.num_rows for footer in footers), _columns(footers[0].schema.to_arrow_schema())


def _library(kind: Any) -> str:
    return str(getattr(kind, "__module__", "")).partition(".")[0]


def _frame_files(files: Sequence[Path], name: str) -> tuple[list[Path], str]:
    """The files of a frame and their suffix; those of a folder in place of it."""
    for suffix in _FRAME_FILES:
        # The suffix of a single file is that of the dataset's name: a copy of it in DVC's cache has none.
        groups = [sorted(file.rglob(f"*{suffix}")) if file.is_dir() else [file] for file in files]
        if all(groups) and (name.endswith(suffix) or all(file.is_dir() for file in files)):
            return [file for group in groups for file in group], suffix
    raise DatasetError(
        f"{name} cannot be loaded as a dataframe: it is not a .parquet or .csv file, nor a folder of them. Annotate "
        "the argument as Path, bytes or str."
    )


def _stream(value: Any, name: str) -> "tuple[pa.Schema, Iterable[pa.RecordBatch]]":
    """The columns of a frame, and its rows in batches, which are computed one by one if the frame is lazy."""
    library = _library(type(value))
    if library == "polars" and hasattr(value, "collect_batches"):
        schema = polars.DataFrame(schema=value.collect_schema()).to_arrow().schema
        frames = value.collect_batches(maintain_order=True, chunk_size=_GROUP)
        return schema, (batch for frame in frames for batch in frame.to_arrow().cast(schema).to_batches())
    if library == "pyarrow":
        value = value.scanner() if isinstance(value, ds.Dataset) else value
        value = value.to_reader() if isinstance(value, ds.Scanner | pa.Table) else value
        if isinstance(value, pa.RecordBatch):
            return value.schema, [value]
        return value.schema, value
    if library == "polars":
        # Older releases compute a lazy frame only as a whole.
        table = (value.collect() if hasattr(value, "collect") else value).to_arrow()
    else:
        levels = [level for level in value.index.names if level is not None]
        frame = value.reset_index(level=levels) if levels else value
        try:
            table = pa.Table.from_pandas(frame, preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DatasetError(f"{name} has a column of mixed types: {error}. Cast it to one type first.") from error
    return table.schema, table.to_batches()


def _groups(batches: "Iterable[pa.RecordBatch]", schema: "pa.Schema") -> "Iterator[pa.Table]":
    """The same rows in tables of `_GROUP` rows, whatever the sizes of the batches."""
    waiting: list[Any] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        while rows >= _GROUP:
            table = pa.Table.from_batches(waiting, schema)
            yield table.slice(0, _GROUP)
            waiting, rows = table.slice(_GROUP).to_batches(), rows - _GROUP
    if rows:
        yield pa.Table.from_batches(waiting, schema)


def _columns(schema: "pa.Schema") -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(column.name, str(column.type)) for column in schema])
