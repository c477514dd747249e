"""Point-in-time joins by DuckDB's native ASOF join: one sorted pass per feature view, whatever its time to live.

Timestamps are compared as whole microseconds since 1970 in UTC, with finer digits cut off, so that no event moves into
the future; one without a time zone is UTC.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import duckdb
import numpy as np
import pyarrow as pa

from dagster_mlops.core.tables import sql_name
from dagster_mlops.core.timestamps import MICROSECOND, from_microseconds
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.offline.sql import described, instant, unlike

_ORIGIN = "dagster_mlops_"  # before the columns of a candidate's key and time in a result
# Beyond these, a comparison with a column in nanoseconds would overflow.
_NANOSECOND_YEARS = range(1700, 2260)


@dataclass(frozen=True)
class View:
    """One feature view's rows, and the features to join.

    Attributes:
        name: Name of the feature view.
        relation: Text after ``FROM`` in DuckDB's SQL.
        types: Every column of the relation and its DuckDB type.
        keys: Column of the relation → column of the entity rows. If empty, each entity row gets the view's latest row.
        instant: Column with a row's event timestamp.
        created: Column that decides between rows of one key and event timestamp: the latest wins, a missing one loses.
            Without it, or with equal ones, the largest values win.
        features: Column of the relation → name in the result.
        ttl: Maximum age of a row, to the microsecond, bound included. None: any age.
        known_only: Leave out rows that were created after the entity row's timestamp, or have no created timestamp.
    """

    name: str
    relation: str
    types: dict[str, str]
    keys: dict[str, str]
    instant: str
    created: str | None
    features: dict[str, str]
    ttl: timedelta | None
    known_only: bool = False


def within(column: str, kind: str, first: int | None, last: int | None) -> str:
    """SQL condition for rows from `first` to `last`, both included, that can skip row groups of Parquet files."""
    exact = instant(column, kind, "time range")
    terms = [f"{exact} IS NOT NULL"]
    bounds = ((">=", first, 0), ("<=", last, 1))  # one microsecond more: finer digits were cut off above
    for sign, bound, margin in bounds:
        if bound is None:
            continue
        terms.append(f"{exact} {sign} {bound}")
        try:
            time = from_microseconds(bound + margin)
        except OverflowError:  # before year 1 or after 9999
            continue
        if kind in {"TIMESTAMP", "TIMESTAMP WITH TIME ZONE"} or (
            kind in {"TIMESTAMP_NS", "TIMESTAMPTZ_NS"} and time.year in _NANOSECOND_YEARS
        ):
            literal = time.isoformat(sep=" ") if "Z" in kind else time.replace(tzinfo=None).isoformat(sep=" ")
            terms.append(f"{column} {sign} CAST('{literal}' AS {kind})")
    return " AND ".join(terms)


def candidates(view: View, first: int | None, last: int | None, *, unique: bool = True) -> str:
    """SQL for the rows that can be a result: one per key and time, as ``k0 … known_at, since, v0 …``.

    Without `unique`, and unless only rows known at the time count, there may be several, which saves a sort.

    ``known_at`` is the time from which the row is the result, and ``since`` the time from which its age counts. They
    differ only with `known_only`, where a row is the result once it is created and no later one is known. A row that
    can never be the result, because a later one was known before it, is left out, so that the as-of join stays a
    single lookup.
    """
    keys = [f"k{i}" for i in range(len(view.keys))]
    columns = [f"{sql_name(column)} AS {key}" for column, key in zip(view.keys, keys, strict=True)]
    columns.append(f"{instant(sql_name(view.instant), view.types[view.instant], view.name)} AS since")
    columns += [f"{sql_name(column)} AS v{i}" for i, column in enumerate(view.features)]
    conditions = [within(sql_name(view.instant), view.types[view.instant], first, last)]
    conditions += [f"{sql_name(column)} IS NOT NULL" for column in view.keys]
    if view.created:
        columns.append(f"{instant(sql_name(view.created), view.types[view.created], view.name)} AS created")
    rows = f"SELECT {', '.join(columns)} FROM {view.relation} WHERE {' AND '.join(conditions)}"
    # Of otherwise equal rows the largest values win: the row that DuckDB's threads read first differs between runs.
    values = [f"v{i} DESC NULLS LAST" for i in range(len(view.features))]
    if not view.known_only and not unique:
        return f"SELECT *, since AS known_at FROM ({rows})"
    if not view.known_only:
        order = ["created DESC NULLS LAST"] if view.created else []
        newest = f"PARTITION BY {', '.join([*keys, 'since'])} ORDER BY {', '.join([*order, *values]) or '1'}"
        return f"SELECT *, since AS known_at FROM ({rows}) QUALIFY row_number() OVER ({newest}) = 1"
    created_rows = f"SELECT *, greatest(since, created) AS known_at FROM ({rows}) WHERE created IS NOT NULL"
    order = ", ".join(["since DESC", "created DESC", *values])
    latest = f"PARTITION BY {', '.join([*keys, 'known_at'])} ORDER BY {order}"
    latest_per_time = f"SELECT * FROM ({created_rows}) QUALIFY row_number() OVER ({latest}) = 1"
    before = f"PARTITION BY {', '.join(keys)} " if keys else ""
    before += "ORDER BY known_at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING"
    rank = "{'since': since, 'created': created}"
    return f"SELECT * FROM ({latest_per_time}) QUALIFY coalesce({rank} > max({rank}) OVER ({before}), true)"


def joined(
    connection: duckdb.DuckDBPyConnection,
    chunks: Iterator[pa.Table],
    views: list[View],
    *,
    timestamp: str,
    bounds: tuple[int, int] | None,
    keep: bool,
) -> Iterator[pa.Table]:
    """Each chunk of entity rows with the views' features as further columns: every row, in its order.

    Args:
        connection: Connection that has the views' relations. Its time zone must be UTC.
        chunks: Entity rows; all chunks have one schema.
        views: Views whose columns exist and compare with those of the entity rows.
        timestamp: Timestamp column of the entity rows.
        bounds: First and last timestamp of the entity rows, in microseconds; rows that cannot match are not read.
        keep: Keep the candidates of a view between chunks, rather than read them for each.
    """
    spans: list[tuple[int | None, int | None]] = []
    for i, view in enumerate(views):
        first, last = bounds or (None, None)
        first = first - view.ttl // MICROSECOND if first is not None and view.ttl is not None else None
        spans.append((first, last))
        _create_candidates(connection, i, candidates(view, first, last, unique=keep), keep=keep)

    needed = list(dict.fromkeys([timestamp, *(key for view in views for key in view.keys.values())]))
    for chunk in chunks:
        lookup_rows = chunk.select(needed).append_column("dagster_mlops_row", pa.array(np.arange(chunk.num_rows)))
        connection.register("entities", lookup_rows)
        kinds = described(connection, "entities")
        for i, view in enumerate(views):
            is_unique = keep or view.known_only
            answer = _looked_up(connection, i, view, kinds, timestamp, [] if is_unique else _origin_columns(view))
            if not is_unique and _has_ties(connection, i, view, answer):
                _create_candidates(connection, i, candidates(view, *spans[i]), keep=keep)
                answer = _looked_up(connection, i, view, kinds, timestamp, [])
            if answer.num_rows != chunk.num_rows:
                raise FeatureError(f"the as-of join with {view.name!r} made {answer.num_rows} of {chunk.num_rows} rows")
            for name in view.features.values():
                chunk = chunk.append_column(name, answer.column(name))
        connection.unregister("entities")
        yield chunk


def _create_candidates(connection: duckdb.DuckDBPyConnection, i: int, query: str, *, keep: bool) -> None:
    connection.execute(f"CREATE OR REPLACE TEMP {'TABLE' if keep else 'VIEW'} candidates_{i} AS {query}")


def _looked_up(
    connection: duckdb.DuckDBPyConnection, i: int, view: View, kinds: dict[str, str], timestamp: str, origin: list[str]
) -> pa.Table:
    """The features of a view for each of ``entities``, and the columns `origin` of the candidate."""
    # A key of another type has no value: `view_of` refused any other.
    conditions = [
        f"{'NULL' if unlike(kinds[key], view.types[column]) else 'e.' + sql_name(key)} = f.k{j}"
        for j, (column, key) in enumerate(view.keys.items())
    ]
    row_time = instant(f"e.{sql_name(timestamp)}", kinds[timestamp], "entity rows")
    conditions.append(f"{row_time} >= f.known_at")
    alive = f"f.since >= {row_time} - {view.ttl // MICROSECOND}" if view.ttl is not None else "true"
    values = [f"CASE WHEN {alive} THEN f.v{j} END AS {sql_name(name)}" for j, name in enumerate(view.features.values())]
    values += [f"f.{name} AS {_ORIGIN}{name}" for name in origin]
    return connection.sql(
        f"SELECT {', '.join(values)} FROM entities AS e ASOF LEFT JOIN candidates_{i} AS f "
        f"ON {' AND '.join(conditions)} ORDER BY e.dagster_mlops_row"
    ).to_arrow_table()


def _has_ties(connection: duckdb.DuckDBPyConnection, i: int, view: View, answer: pa.Table) -> bool:
    """True if a candidate that was joined has another one of its key and time; any of them may have been taken."""
    names = _origin_columns(view)
    connection.register("joined_rows", answer.select([_ORIGIN + name for name in names]))
    same = " AND ".join(f"f.{name} = j.{_ORIGIN}{name}" for name in names)
    [(pairs, rows)] = connection.execute(
        f"WITH j AS MATERIALIZED (SELECT DISTINCT * FROM joined_rows WHERE {_ORIGIN}known_at IS NOT NULL) "
        f"SELECT (SELECT count(*) FROM j), (SELECT count(*) FROM j JOIN candidates_{i} AS f ON {same})"
    ).fetchall()
    connection.unregister("joined_rows")
    return rows > pairs


def _origin_columns(view: View) -> list[str]:
    """The columns of candidates with their key and time."""
    return [*(f"k{j}" for j in range(len(view.keys))), "known_at"]
