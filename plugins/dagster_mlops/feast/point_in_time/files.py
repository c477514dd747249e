"""Feast's file sources for DuckDB: Parquet, CSV and Delta tables, on disk or in S3."""

import glob
import os
import shutil
import uuid
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
from feast.data_format import DeltaFormat, ParquetFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.file_source import FileSource

from dagster_mlops.core.tables import sql_name, sql_text
from dagster_mlops.errors import FeatureError, MissingTableError
from dagster_mlops.feast.offline.sql import described

GLOB = frozenset("*?[")  # what makes a path a pattern
_CSV = (".csv", ".csv.gz")


def location(source: FileSource, repo_path: Path | str | None) -> str:
    """An absolute path or an ``s3://`` address; relative paths start from the feature repository."""
    if source.path.startswith("file://"):
        return unquote(urlparse(source.path).path)
    return source.path if "://" in source.path else str(Path(repo_path or ".") / source.path)


def checked(source: DataSource | None) -> FileSource:
    """The source, if it is a file source; a FeatureError otherwise."""
    if not isinstance(source, FileSource):
        name = getattr(source, "name", "the view")
        raise FeatureError(
            f"this offline store supports file sources (Parquet, CSV, Delta), and {name!r} "
            f"is {type(source).__name__}. Use a FileSource, or Feast's offline store for that source."
        )
    return source


def arrow_schema(connection: duckdb.DuckDBPyConnection, source: DataSource, repo_path: Path | str | None) -> pa.Schema:
    """The columns of a source and their Arrow types."""
    return connection.sql(f"SELECT * FROM {scan(connection, source, repo_path)} LIMIT 0").to_arrow_table().schema


def scan(connection: duckdb.DuckDBPyConnection, source: DataSource | None, repo_path: Path | str | None) -> str:
    """Text after ``FROM`` in SQL on this connection to read a source.

    DuckDB itself reads local Parquet and CSV files. S3 and Delta tables are read through Arrow datasets, for which no
    DuckDB extension has to be downloaded, and which still read only the columns and row groups that a query needs.

    Raises:
        FeatureError: The source is not a file source, is missing, or has an unsupported format.
    """
    source = checked(source)
    place = location(source, repo_path)
    if isinstance(source.file_format, DeltaFormat):
        return _registered(connection, _delta(source, place).to_pyarrow_dataset())
    if not isinstance(source.file_format, ParquetFormat | None):
        raise FeatureError(f"source {source.name!r} has the unsupported format {type(source.file_format).__name__}.")
    disk, path = filesystem(source, repo_path)
    files = _files_at(disk, path)
    if not files:
        raise MissingTableError(f"source {source.name!r}: no file at {place}. Write the table first, or fix the path.")
    if "://" in place and not files[0].endswith(_CSV):
        return _registered(connection, ds.dataset(files, filesystem=disk, format="parquet", partitioning="hive"))
    if "://" in place:
        files = _downloaded(connection, disk, files)
    file_list = ", ".join(map(sql_text, files))
    if files[0].endswith(_CSV):
        return f"read_csv([{file_list}], sample_size = -1, union_by_name = true)"
    return _parquet(connection, files)


def _parquet(connection: duckdb.DuckDBPyConnection, files: list[str]) -> str:
    """Text after ``FROM`` in SQL to read Parquet files; columns without any value are left out of single files.

    pandas writes such a column of times, texts or truths as float64 of NaN, which DuckDB cannot cast to the type that
    the other files have.
    """
    relation = f"read_parquet([{', '.join(map(sql_text, files))}], union_by_name = true)"
    if len(files) == 1:
        return relation
    mixed = connection.execute(
        "SELECT name, list(DISTINCT file_name) FILTER (type IN ('FLOAT', 'DOUBLE')) AS floats "
        f"FROM parquet_schema([{', '.join(map(sql_text, files))}]) GROUP BY name HAVING len(floats) > 0 AND "
        "bool_or(type IN ('BYTE_ARRAY', 'BOOLEAN', 'INT96') OR logical_type::VARCHAR ILIKE '%timestamp%')"
    ).fetchall()
    lacking: dict[str, list[str]] = {}
    for name, floats in mixed:
        column = sql_name(name)
        for file in floats:
            single_file = f"read_parquet([{sql_text(file)}])"
            if (
                described(connection, single_file).get(name) in ("FLOAT", "DOUBLE")
                and not connection.execute(f"SELECT 1 FROM {single_file} WHERE NOT isnan({column}) LIMIT 1").fetchall()
            ):
                lacking.setdefault(file, []).append(column)
    if not lacking:
        return relation
    parts = [
        f"SELECT * EXCLUDE ({', '.join(names)}) FROM {_parquet(connection, [file])}" for file, names in lacking.items()
    ]
    complete_files = [file for file in files if file not in lacking]
    parts += [f"SELECT * FROM {_parquet(connection, complete_files)}"] if complete_files else []
    return f"({' UNION ALL BY NAME '.join(reversed(parts))})"


def exists(source: DataSource, repo_path: Path | str | None) -> bool:
    """True if a file source's file or folder exists."""
    files, path = filesystem(checked(source), repo_path)
    return files.get_file_info(path).type != pafs.FileType.NotFound


def _files_at(disk: pafs.FileSystem, path: str) -> list[str]:
    """A file, the files of a pattern, or those of a folder: Parquet files or, if there are none, CSV files."""
    is_local = isinstance(disk, pafs.LocalFileSystem)
    if set(path) & GLOB and not (is_local and os.path.exists(path)):
        if is_local:
            return sorted(glob.glob(path, recursive=True))
        base = path[: min(path.index(sign) for sign in GLOB if sign in path)].rpartition("/")[0]
        return [file for file in (f"{base}/{name}" for name in names_below(disk, base)) if fnmatch(file, path)]
    if disk.get_file_info(path).type == pafs.FileType.File:
        return [path]
    files = [f"{path}/{name}" for name in names_below(disk, path) if not passed_over(name)]
    return [f for f in files if f.endswith(".parquet")] or [f for f in files if f.endswith(_CSV)]


def _downloaded(connection: duckdb.DuckDBPyConnection, disk: pafs.FileSystem, files: list[str]) -> list[str]:
    """Copies of CSV files in DuckDB's spill folder, so that DuckDB infers the same types as for local files."""
    ((spill,),) = connection.execute("SELECT current_setting('temp_directory')").fetchall()
    copies = []
    for file in files:
        ending = ".csv.gz" if file.endswith(".gz") else ".csv"
        copies.append(f"{spill}/{uuid.uuid4().hex}{ending}")
        with disk.open_input_stream(file, compression=None) as read, open(copies[-1], "wb") as copy:
            shutil.copyfileobj(read, copy, 1 << 20)
    return copies


def names_below(disk: pafs.FileSystem, folder: str) -> list[str]:
    """The paths of all files below a folder, from there; none if it is missing."""
    inside = disk.get_file_info(pafs.FileSelector(folder, recursive=True, allow_not_found=True))
    return sorted(file.path.removeprefix(folder).strip("/") for file in inside if file.type == pafs.FileType.File)


def passed_over(name: str) -> bool:
    """True for files below a folder that readers leave out: temporary files, Delta's log."""
    return any(part.startswith((".", "_")) for part in name.split("/"))


def _registered(connection: duckdb.DuckDBPyConnection, dataset: ds.Dataset) -> str:
    name = f"source_{uuid.uuid4().hex}"
    connection.register(name, dataset)
    return sql_name(name)


def filesystem(source: FileSource, repo_path: Path | str | None) -> tuple[pafs.FileSystem, str]:
    """The file system of a source, and its path there.

    Credentials are those of the source's own connection; by default those that AWS' tools find in the environment, in
    files or on the machine.
    """
    place = location(source, repo_path)
    if not place.startswith("s3://"):
        if "://" in place:
            return pafs.FileSystem.from_uri(place)
        return pafs.LocalFileSystem(), place
    credentials, variables = source.resolve_credentials() or {}, os.environ
    arguments = {
        "endpoint_override": source.s3_endpoint_override
        or variables.get("AWS_ENDPOINT_URL_S3")
        or variables.get("AWS_ENDPOINT_URL"),
        "access_key": credentials.get("AWS_ACCESS_KEY_ID"),
        "secret_key": credentials.get("AWS_SECRET_ACCESS_KEY"),
        "session_token": credentials.get("AWS_SESSION_TOKEN"),
        "region": credentials.get("AWS_DEFAULT_REGION")
        or variables.get("AWS_REGION")
        or variables.get("AWS_DEFAULT_REGION"),
    }
    settings = {name: value for name, value in arguments.items() if value}
    disk = pafs.S3FileSystem(**settings, connect_timeout=10, request_timeout=60)
    return disk, place.removeprefix("s3://").rstrip("/")


def storage_options(source: FileSource) -> dict[str, str]:
    """A source's credentials and endpoint as options of `deltalake`."""
    options = dict(source.resolve_credentials() or {})
    if source.s3_endpoint_override:
        options["AWS_ENDPOINT_URL"] = source.s3_endpoint_override
    if (options.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL", "")).startswith("http://"):
        options["AWS_ALLOW_HTTP"] = "true"
    return options


def _delta(source: FileSource, place: str) -> Any:
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    try:
        return DeltaTable(place, storage_options=storage_options(source))
    except TableNotFoundError as error:
        raise MissingTableError(f"source {source.name!r}: no Delta table at {place}. Write the table first.") from error
