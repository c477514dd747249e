"""The rows of Feast's retrieval jobs in DuckDB, batch by batch where their offline store can."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.feast import upstream
from dagster_mlops.feast.lazy import DuckDBPyConnection, pa

_ROWS_PER_BATCH = 10_000


@contextmanager
def registered(job: Any) -> Iterator[tuple[DuckDBPyConnection, str]]:
    """DuckDB, and a query that reads the rows of a retrieval job of any offline store, once."""
    # Rows must not spill into the working directory, which is DuckDB's default.
    with (
        tempfile.TemporaryDirectory(prefix="dagster-mlops-") as spill,
        extra("duckdb", extra="feast").connect(config={"temp_directory": spill}) as duckdb,
    ):
        duckdb.execute("SET TimeZone = 'UTC'")  # a time without a zone is UTC
        duckdb.register("source", _batches(job))
        yield duckdb, "FROM source"


def _batches(job: Any) -> "pa.RecordBatchReader":
    """The rows of a retrieval job, in batches if its store supports them; Feast itself returns only whole tables."""
    if hasattr(job, "table"):
        # Feast's DuckDB store builds on Ibis, whose own batches call a method that DuckDB has renamed.
        return job.table.get_backend().con.sql(job.table.compile()).to_arrow_reader()
    if type(job).__name__ == "PostgreSQLRetrievalJob":
        return _from_postgres(job)
    return job.to_arrow().to_reader()


def _from_postgres(job: Any) -> "pa.RecordBatchReader":
    """The rows of a query by a server-side cursor; Feast itself fetches all of them as Python objects."""
    types = extra("feast.type_map", extra="feast")
    connection = upstream.offline_postgres_connection(job.config.offline_store)
    connection.read_only = True
    cursor = connection.cursor("dagster_mlops")
    cursor.execute(job.to_sql())
    schema = pa.schema([(column.name, types.pg_type_code_to_arrow(column.type_code)) for column in cursor.description])

    def batches() -> "Iterator[pa.RecordBatch]":
        with connection:  # closes the connection
            while rows := cursor.fetchmany(_ROWS_PER_BATCH):
                columns = zip(zip(*rows, strict=True), schema.types, strict=True)
                yield pa.record_batch([pa.array(values).cast(kind) for values, kind in columns], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())
