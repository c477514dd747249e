"""Dataframes, tables, bytes and files to and from one file on disk."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops._extras import extra
from dagster_mlops.errors import DatasetError

if TYPE_CHECKING:
    import pyarrow

_FRAMES = ("pandas", "pyarrow", "polars")
_FRAME_FILES = (".parquet", ".csv")


def write(value: Any, file: Path, *, name: str) -> tuple[int | None, dg.TableSchema | None]:
    """Write `value` to `file` in the format that the suffix of `name` says; its rows and columns where it has any.

    The same frame gives the same bytes. A pandas index is not kept unless its levels are named: then they are columns.

    Raises:
        DatasetError: no way to write this type, or the frame does not fit into the file format.
    """
    if isinstance(value, Path):
        if not value.exists():
            raise DatasetError(
                f"{name} was to be stored from {value}, which does not exist. Return a path after writing."
            )
        shutil.copytree(value, file) if value.is_dir() else shutil.copyfile(value, file)
        return _described(file, name)
    if isinstance(value, bytes | bytearray | str):
        file.write_bytes(value.encode() if isinstance(value, str) else value)
        return _described(file, name)
    if _library(type(value)) not in _FRAMES or not name.endswith(_FRAME_FILES):
        raise DatasetError(
            f"{name} cannot be stored from {type(value).__module__}.{type(value).__qualname__}. Return a pandas, "
            "pyarrow or polars frame (to a .parquet or .csv path), bytes, a string, or the path of a file you wrote."
        )
    table = _table(value, name)
    if name.endswith(".csv"):
        extra("pyarrow.csv").write_csv(table, str(file))
    else:
        parquet, arrow = extra("pyarrow.parquet"), extra("pyarrow")
        try:
            # Nanoseconds are refused by DuckDB-based readers such as Feast's; no digit is dropped silently.
            parquet.write_table(table, str(file), coerce_timestamps="us", compression="zstd")
        except arrow.ArrowInvalid as error:
            raise DatasetError(
                f"{name} cannot be written as parquet: {error}. If a timestamp has nanoseconds, round it first: "
                "frame[column].dt.floor('us')."
            ) from error
    return table.num_rows, _columns(table.schema)


def read(files: Sequence[Path], kind: Any, *, name: str) -> Any:
    """Read files as the type `kind` of an annotation: a frame or table of all of them, else a single file's content.

    Raises:
        DatasetError: no way to read this type, or several files for a type that cannot be put together.
    """
    library = _library(kind)
    if library not in _FRAMES and name.endswith(_FRAME_FILES) and kind not in (Path, bytes, str):
        library = "pandas"  # no annotation, or one that says nothing
    if library == "pandas":
        pandas = extra("pandas", extra="dvc")
        load = pandas.read_csv if name.endswith(".csv") else pandas.read_parquet
        frames = [load(file) for file in files]
        return frames[0] if len(frames) == 1 else pandas.concat(frames, ignore_index=True)
    if library == "pyarrow":
        load = extra("pyarrow.csv").read_csv if name.endswith(".csv") else extra("pyarrow.parquet").read_table
        tables = [load(str(file)) for file in files]
        return tables[0] if len(tables) == 1 else extra("pyarrow").concat_tables(tables)
    if library == "polars":
        polars = extra("polars", extra="dvc")
        load = polars.read_csv if name.endswith(".csv") else polars.read_parquet
        return polars.concat([load(file) for file in files])
    if len(files) > 1:
        raise DatasetError(
            f"{name} and {len(files) - 1} more partitions cannot be put together as {kind}. Annotate the argument as a "
            "dataframe, or as dict[str, …] to get one value per partition."
        )
    if kind is bytes:
        return files[0].read_bytes()
    return files[0].read_text() if kind is str else files[0]


def _library(kind: Any) -> str:
    return str(getattr(kind, "__module__", "")).partition(".")[0]


def _table(value: Any, name: str) -> "pyarrow.Table":
    library, arrow = _library(type(value)), extra("pyarrow", extra="dvc")
    if library == "polars":
        return value.to_arrow()
    if library == "pyarrow":
        return value
    named = [level for level in value.index.names if level is not None]
    frame = value.reset_index(level=named) if named else value
    try:
        return arrow.Table.from_pandas(frame, preserve_index=False)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
        raise DatasetError(f"{name} has a column of mixed types: {error}. Cast it to one type first.") from error


def _described(file: Path, name: str) -> tuple[int | None, dg.TableSchema | None]:
    if not name.endswith(".parquet") or file.is_dir():
        return None, None
    arrow, parquet = extra("pyarrow", extra="dvc"), extra("pyarrow.parquet", extra="dvc")
    try:
        metadata = parquet.read_metadata(str(file))
    except arrow.ArrowInvalid as error:
        raise DatasetError(f"{name} is not a parquet file: {error}") from error
    return metadata.num_rows, _columns(metadata.schema.to_arrow_schema())


def _columns(schema: "pyarrow.Schema") -> dg.TableSchema:
    return dg.TableSchema([dg.TableColumn(column.name, str(column.type)) for column in schema])
