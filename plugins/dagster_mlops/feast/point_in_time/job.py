"""Feast's retrieval job: a result that is computed on request, whole or piece by piece."""

import copy
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.saved_dataset import SavedDatasetStorage

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.point_in_time import files
from dagster_mlops.feast.point_in_time.declared import declared_values
from dagster_mlops.feast.point_in_time.writing import scratch_folder, write

Connect = Callable[[], Any]  # returns a context manager with a new DuckDB connection


@contextmanager
def duckdb_connection(
    *, memory_limit: str | None = None, threads: int | None = None, temp_directory: str | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory that spills into a folder of its own, uses UTC, and downloads nothing.

    Raises:
        FeatureError: Memory or the disk with the spill folder is full, or `temp_directory` does not exist.
    """
    where = Path(temp_directory or tempfile.gettempdir())
    with scratch_folder(where, prefix="duckdb-") as spill:
        settings: dict[str, Any] = {"temp_directory": str(spill), "autoinstall_known_extensions": False}
        settings |= {"memory_limit": memory_limit} if memory_limit else {}
        settings |= {"threads": threads} if threads else {}
        try:
            with duckdb.connect(config=settings) as connection:
                connection.execute("SET TimeZone = 'UTC'")
                # A query must not find Python variables of this package by their names.
                connection.execute("SET python_enable_replacements = false")
                connection.execute("SET enable_progress_bar = false")  # it would be printed into logs
                yield connection
        except (duckdb.Error, OSError, pa.ArrowException) as error:  # Arrow's error when a result is read as a stream
            message = str(error)
            if str(spill) not in message and "Out of Memory" not in message:
                raise
            if str(spill) in message or "max_temp_directory_size" in message:
                remedy = f"{where} has no space for it. Set temp_directory to a folder on a larger disk, or"
            else:
                remedy = f"spilling to {where} is not enough. Lower threads or chunk_rows, or"
            raise FeatureError(
                f"the query needs more than {memory_limit or '80 % of the memory'}, and {remedy} raise memory_limit, "
                f"below offline_store: in feature_store.yaml. DuckDB: {message.splitlines()[0]}"
            ) from error


@dataclass(eq=False)
class AsofRetrievalJob(RetrievalJob):
    """A validated retrieval that reads its sources each time its result is requested.

    Beside Feast's own ``to_df``, ``to_arrow`` and ``persist``, ``to_tables()``, ``to_arrow_reader()`` and
    ``to_parquet(path)`` give the result piece by piece, including on-demand features, so that it may be larger than
    memory.
    """

    read_tables: Callable[[duckdb.DuckDBPyConnection], Iterator[pa.Table]]
    connect: Connect
    repo_path: Path | None
    on_demand_feature_views: Any = ()  # this and the next two are properties of Feast's class
    full_feature_names: Any = False
    metadata: Any = None
    query: Callable[[duckdb.DuckDBPyConnection], str] | None = None

    @contextmanager
    def in_duckdb(self) -> Iterator[tuple[duckdb.DuckDBPyConnection, str]]:
        """A connection and the query with the result, for callers that use it inside DuckDB.

        Raises:
            FeatureError: The result needs several queries.
        """
        with self.connect() as connection:
            yield connection, self.query(connection) if self.query else self.to_sql()  # raises the error

    def to_tables(self, timeout: int | None = None) -> Iterator[pa.Table]:
        """The result in tables of `chunk_rows` rows, with on-demand features; at least one, possibly empty.

        Args:
            timeout: Maximum seconds until the last row.

        Raises:
            FeatureError: It took longer.
        """
        for table in self._limited(timeout):
            if not self.on_demand_feature_views:
                yield table
                continue
            # Feast's own code for on-demand features takes a whole result, so this piece is made one.
            piece = copy.copy(self)
            piece.read_tables = lambda _, table=table: iter([table])
            yield piece.to_arrow()

    def to_arrow(self, validation_reference: Any = None, timeout: int | None = None) -> pa.Table:
        """The result as one table, whose on-demand features have their declared types.

        Feast infers them from the values, so that a missing one would change the type of its piece of the result.

        Raises:
            FeatureError: An on-demand view computed values that its declared type cannot hold.
        """
        table = super().to_arrow(validation_reference=validation_reference, timeout=timeout)
        for view in self.on_demand_feature_views:
            prefix = f"{view.projection.name_to_use()}__" if self.full_feature_names else ""
            for feature in view.features:
                if (name := prefix + feature.name) in table.column_names:
                    values = declared_values(table.column(name), feature, view.name)
                    table = table.set_column(table.column_names.index(name), name, values)
        return table

    def to_arrow_reader(self, timeout: int | None = None) -> pa.RecordBatchReader:
        """The result as Arrow record batches, computed as they are read."""
        tables = self.to_tables(timeout)
        first = next(tables)

        def batches() -> Iterator[pa.RecordBatch]:
            yield from first.to_batches()
            for table in tables:
                yield from table.cast(first.schema).to_batches()

        return pa.RecordBatchReader.from_batches(first.schema, batches())

    def to_parquet(self, path: str, timeout: int | None = None) -> None:
        """Write the result piece by piece: one file (``….parquet``) or a file in a folder, on disk or in S3.

        An existing file is replaced once the new result is complete.
        """
        write(FileSource(path=path), self.repo_path, self.to_tables(timeout), append=False)

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result piece by piece to a saved dataset's location, Parquet or Delta.

        Raises:
            SavedDatasetLocationAlreadyExists: The location exists, and `allow_overwrite` is not set.
        """
        source = storage.to_data_source()
        if not allow_overwrite and files.exists(source, self.repo_path):
            raise SavedDatasetLocationAlreadyExists(location=files.checked(source).path)
        write(source, self.repo_path, self.to_tables(timeout), append=False)

    def to_sql(self) -> str:
        """Not supported; always raises a FeatureError."""
        raise FeatureError(
            "this retrieval consists of several queries, one for each feature view, so no single query gives it. "
            "Use to_arrow(), to_tables() or to_parquet(path)."
        )

    def to_remote_storage(self) -> list[str]:
        """Not supported; always raises a FeatureError."""
        raise FeatureError(
            "this offline store has no remote storage of its own. Name the location: to_parquet('s3://bucket/folder')."
        )

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return pa.concat_tables(self._limited(timeout))

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def _limited(self, timeout: int | None) -> Iterator[pa.Table]:
        end = time.monotonic() + timeout if timeout else float("inf")
        with self.connect() as connection:
            timer = threading.Timer(timeout or 0, connection.interrupt)
            try:
                if timeout:
                    timer.start()
                for table in self.read_tables(connection):
                    if time.monotonic() > end:  # interrupt() does nothing between two queries
                        raise duckdb.InterruptException("out of time")
                    yield table
            except duckdb.InterruptException as error:
                raise FeatureError(f"the retrieval did not finish within {timeout} s. Request fewer rows.") from error
            finally:
                timer.cancel()
