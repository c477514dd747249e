"""DuckDB's types: which compare with each other, and the microseconds of those that are times."""

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import DuckDBPyConnection

NULL = '"NULL"'
"""DuckDB's type of a column of Arrow's type null, which has no value."""


def described(connection: DuckDBPyConnection, relation: str) -> dict[str, str]:
    """The columns of a relation and their DuckDB types."""
    return {name: kind for name, kind, *_ in connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()}


def family(kind: str) -> str | None:
    """The family of DuckDB types that compare with each other: number, text, time, truth, bytes, list; or None."""
    if kind.endswith("]"):
        return "list"
    base = kind.split("(")[0]
    if base.startswith("TIMESTAMP") or base == "DATE":
        return "time"
    if base.removeprefix("U").endswith(("INT", "INTEGER")) or base in {"FLOAT", "DOUBLE", "DECIMAL"}:
        return "number"
    return {"VARCHAR": "text", "ENUM": "text", "BOOLEAN": "truth", "BLOB": "bytes"}.get(base)


def unlike(kind: str, other: str) -> bool:
    """True if a column of the DuckDB type `kind` cannot hold values of the type `other`."""
    families = family(kind), family(other)
    return kind == NULL or (None not in families and families[0] != families[1])


def instant(column: str, kind: str, asker: str) -> str:
    """SQL for the microseconds since 1970 of a column of timestamps, dates or ISO text.

    Raises:
        FeatureError: The column has another type.
    """
    if family(kind) == "text":
        return f"epoch_us(CAST({column} AS TIMESTAMPTZ))"
    if family(kind) != "time":
        raise FeatureError(
            f"{asker}: column {column.rpartition('.')[2]} is {kind}, not a timestamp. "
            "Store it as a timestamp (without a time zone it is read as UTC)."
        )
    if kind.endswith("_NS"):  # pandas writes nanoseconds by default; DuckDB's casts and its epoch_us round them up
        return f"(epoch_ns({column}) // 1000 - CAST(epoch_ns({column}) % 1000 < 0 AS BIGINT))"
    return f"epoch_us(CAST({column} AS TIMESTAMP))" if kind == "DATE" else f"epoch_us({column})"
