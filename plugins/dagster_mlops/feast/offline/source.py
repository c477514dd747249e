"""Statistics and rows of a feature view's offline source, read in batches by DuckDB, so that it may be of any size."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.metadata import about
from dagster_mlops.core.tables import sql_name, sql_text
from dagster_mlops.core.timestamps import MICROSECOND, from_microseconds, to_microseconds
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import DuckDBPyConnection, FeatureStore, compute, pa, pd
from dagster_mlops.feast.offline.jobs import registered
from dagster_mlops.feast.offline.retrieval import NUMBERS, join_keys
from dagster_mlops.feast.offline.sql import described, instant

# Feast's Postgres store writes no valid SQL without a bound; nanoseconds reach back to 1677.
LONG_AGO = datetime(1700, 1, 1, tzinfo=UTC)
"""Start of a window that holds all earlier events."""


@dataclass(frozen=True, order=True)
class Window:
    """A half-open span of event time, [start, end), in UTC."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class FeatureFacts:
    """Statistics of one feature in a window; `mean` to `largest` only for numbers, and None without values."""

    feature: str
    null_share: float = about("Share of rows without a value.")
    distinct: int = about("Number of distinct values, estimated within a few percent.")
    mean: float | None = None
    std: float | None = None
    smallest: float | None = None
    largest: float | None = None


@dataclass(frozen=True)
class WindowFacts:
    """Statistics of a feature view's offline source in a window."""

    window: Window
    rows: int
    last_event: datetime | None
    content_hash: str
    features: tuple[FeatureFacts, ...]


def describe_windows(store: FeatureStore, view: Any, windows: Sequence[Window]) -> list[WindowFacts]:
    """Statistics of the source in each of `windows`, which are in order and do not overlap; read in one pass.

    The content hash does not depend on the order of rows or on how they are split into files.

    Raises:
        FeatureError: The source cannot be read.
    """
    types = {feature.name: str(feature.dtype) for feature in view.features}
    columns = [*join_keys(view), view.batch_source.timestamp_field, *types]
    with _rows(store, view, Window(windows[0].start, windows[-1].end), features=[*types]) as duckdb:
        return described_events(duckdb, columns, types, windows)


def described_events(
    duckdb: DuckDBPyConnection, columns: Sequence[str], types: Mapping[str, str], windows: Sequence[Window]
) -> list[WindowFacts]:
    """Statistics of ``events`` in DuckDB in each of `windows`, as in :func:`describe_windows`.

    Args:
        columns: Columns that the content hash covers.
        types: Feature → Feast type.
    """
    features = [_facts_of(name, dtype) for name, dtype in types.items()]
    text = ", ".join(f"coalesce({sql_name(name)}::VARCHAR, chr(30))" for name in columns)
    digest = f"md5_number(concat_ws(chr(31), {text}))"  # computed once, unlike md5_number_lower and _upper
    halves = [f"sum(({digest} >> 64)::UBIGINT)", f"sum(({digest} & {2**64 - 1}::UHUGEINT)::UBIGINT)"]
    aggregates = ["count(*)", "max(happened)", *halves, *features]
    spans = ", ".join(f"({i}, {to_microseconds(w.start)}, {to_microseconds(w.end)})" for i, w in enumerate(windows))
    placed = (
        "SELECT *, 0 AS place FROM events"
        if len(windows) == 1
        else f"FROM events ASOF JOIN (VALUES {spans}) AS w(place, first, past) ON happened >= first"
        " WHERE happened < past"
    )
    rows = duckdb.sql(f"SELECT place, {', '.join(aggregates)} FROM ({placed}) GROUP BY place").fetchall()
    by_place = {row[0]: row[1:] for row in rows}
    nothing = (0, None, 0, 0, *({"feature": name, "null_share": 0.0, "distinct": 0} for name in types))
    return [_facts(window, *by_place.get(place, nothing)) for place, window in enumerate(windows)]


def whole_window(store: FeatureStore, view: Any) -> Window:
    """The window from the first to the last event of the view's source up to now.

    Raises:
        FeatureError: The source has no events, or cannot be read.
    """
    with _rows(store, view, Window(LONG_AGO, datetime.now(UTC) + MICROSECOND), features=[]) as duckdb:
        [span] = duckdb.sql("SELECT min(happened), max(happened) FROM events").fetchall()
    if span[0] is None:
        raise _no_events(view)
    return Window(from_microseconds(span[0]), from_microseconds(span[1]) + MICROSECOND)


def newest_event(store: FeatureStore, view: Any) -> tuple[datetime, dict[str, Any]]:
    """The time of the newest event of the view's source up to now, and the join keys of an entity with that event.

    Raises:
        FeatureError: The source has no events, or cannot be read.
    """
    keys = join_keys(view)
    present = " AND ".join(["true", *(f"{sql_name(key)} IS NOT NULL" for key in keys)])
    with _rows(store, view, Window(LONG_AGO, datetime.now(UTC) + MICROSECOND), features=[]) as duckdb:
        newest_rows = duckdb.sql(
            f"SELECT {', '.join(['happened', *map(sql_name, keys)])} FROM events WHERE {present} "
            "ORDER BY happened DESC LIMIT 1"
        ).fetchall()
    if not newest_rows:
        raise _no_events(view)
    timestamp, *values = newest_rows[0]
    return from_microseconds(timestamp), dict(zip(keys, values, strict=True))


def latest_events(
    store: FeatureStore,
    view: Any,
    windows: Sequence[Window],
    *,
    sample: int,
    seed: int,
    until: datetime | None = None,
) -> "pd.DataFrame":
    """Up to `sample` entities with an event in one of `windows`, or before `until`: join keys, and their latest events.

    A quarter are the entities with the newest latest events, a quarter those with the oldest, and the rest depends only
    on `seed` and the entities. ``event_timestamp`` is the latest event in `windows`, if any, and ``last_event`` the
    latest in the source up to the end of the windows and `until`; both in UTC.
    """
    keys = join_keys(view)
    key_columns = ", ".join(map(sql_name, keys))
    spans = [f"happened >= {to_microseconds(w.start)} AND happened < {to_microseconds(w.end)}" for w in windows]
    inside = " OR ".join(["false", *spans])
    start = LONG_AGO if until else min(window.start for window in windows)
    full_window = Window(start, max(filter(None, [until, *(window.end for window in windows)])))
    present = " AND ".join(["true", *(f"{sql_name(key)} IS NOT NULL" for key in keys)])
    selection = f"{key_columns}{', ' if keys else ''}max(happened) FILTER ({inside}) AS event, max(happened) AS last"
    order = f"md5(concat_ws(chr(31), '{seed}', {key_columns})), {key_columns}" if keys else "last"
    quarter = -(-sample // 4)
    strata = [f"last DESC, {order} LIMIT {quarter}", f"last, {order} LIMIT {quarter}", f"{order} LIMIT {int(sample)}"]
    with _rows(store, view, full_window, features=[]) as duckdb:
        duckdb.execute(
            f"CREATE TEMP TABLE latest AS SELECT {selection} FROM events WHERE {present} "
            f"{f'GROUP BY {key_columns} ' if keys else ''}HAVING last IS NOT NULL"
            f"{'' if until else ' AND event IS NOT NULL'}"
        )
        picked = " UNION ALL ".join(
            f"(SELECT *, {place} AS place FROM latest ORDER BY {stratum})" for place, stratum in enumerate(strata)
        )
        frame = duckdb.sql(f"{picked} ORDER BY place, {order}").df()
    frame = frame.drop_duplicates(keys or ["last"]).head(sample).reset_index(drop=True)
    for name, column in (("event", "event_timestamp"), ("last", "last_event")):
        frame[column] = pd.to_datetime(frame[name].astype("Int64"), unit="us", utc=True).astype("datetime64[us, UTC]")
    return frame[[*keys, "event_timestamp", "last_event"]]


def latest_per_key(store: FeatureStore, view: Any, window: Window) -> "pd.DataFrame":
    """The join keys of each entity with an event in `window`, and the time of its latest in microseconds since 1970.

    The time is in the column ``last``. A view without entities has one row without keys, or none without an event.
    """
    keys = [*map(sql_name, join_keys(view))]
    present = " AND ".join(["true", *(f"{key} IS NOT NULL" for key in keys)])
    groups = f"GROUP BY {', '.join(keys)}" if keys else "HAVING count(*) > 0"
    with _rows(store, view, window, features=[]) as duckdb:
        columns = ", ".join([*keys, "max(happened) AS last"])
        return duckdb.sql(f"SELECT {columns} FROM events WHERE {present} {groups}").df()


def rows_not_there(store: FeatureStore, view: Any, table: "pa.Table") -> "pa.Table":
    """The rows of `table` that the view's source does not hold yet with the same keys, event timestamp and features.

    `table` has the columns of the source, at least one row, and no missing event timestamp.
    """
    features = [feature.name for feature in view.features]
    columns = [*join_keys(view), *features]
    raw = {mapped: name for name, mapped in view.batch_source.field_mapping.items()}
    time = view.batch_source.timestamp_field
    span = compute.min_max(table[time])
    window = Window(span["min"].as_py(), span["max"].as_py() + MICROSECOND)
    with _rows(store, view, window, features=features) as duckdb:
        duckdb.register("pushed", table)
        same = [f"e.{sql_name(name)} IS NOT DISTINCT FROM p.{sql_name(raw.get(name, name))}" for name in columns]
        same.append(f"e.happened = epoch_us(p.{sql_name(time)})")
        return duckdb.sql(f"SELECT p.* FROM pushed p ANTI JOIN events e ON {' AND '.join(same)}").to_arrow_table()


@contextmanager
def _rows(store: FeatureStore, view: Any, window: Window, *, features: Sequence[str]) -> Iterator[DuckDBPyConnection]:
    """DuckDB with the source as ``events``, to be read once; ``happened`` is the time in microseconds since 1970."""
    source = view.batch_source
    raw = {mapped: name for name, mapped in source.field_mapping.items()}
    columns = [*join_keys(view), *features]
    offline = extra("feast.infra.offline_stores.offline_utils").get_offline_store_from_config(
        store.config.offline_store
    )
    try:
        job = offline.pull_all_from_table_or_query(
            config=store.config,
            data_source=source,
            join_key_columns=[raw.get(name, name) for name in join_keys(view)],
            feature_name_columns=[raw.get(name, name) for name in features],
            timestamp_field=source.timestamp_field,
            start_date=window.start,
            end_date=window.end - MICROSECOND,
        )
        with job.in_duckdb() if hasattr(job, "in_duckdb") else registered(job) as (duckdb, rows):
            time = sql_name(source.timestamp_field)
            kind = described(duckdb, f"({rows})")[source.timestamp_field]
            selection = ", ".join(f"{sql_name(raw.get(name, name))} AS {sql_name(name)}" for name in columns)
            duckdb.execute(
                f"CREATE TEMP VIEW events AS SELECT {selection}{', ' if selection else ''}{time}, "
                f"{instant(time, kind, view.name)} AS happened FROM ({rows})"
            )
            yield duckdb
    except FeatureError:
        raise
    except Exception as error:
        raise FeatureError(
            f"feature view {view.name!r} cannot read its source {getattr(source, 'path', '') or source.name}: {error}. "
            "Materialize the assets that write it first; a FileSource needs an absolute file or folder (no glob) and "
            "timestamps in microseconds."
        ) from error


def _no_events(view: Any) -> FeatureError:
    return FeatureError(
        f"the source of feature view {view.name!r} has no events yet. Materialize the assets that write it first."
    )


def _facts_of(name: str, dtype: str) -> str:
    """SQL for :class:`FeatureFacts` as a struct."""
    column, is_number = sql_name(name), dtype in NUMBERS
    if dtype in {"Float32", "Float64"}:
        column = f"CASE WHEN isnan({column}::DOUBLE) THEN NULL ELSE {column} END"
    different = column if is_number else f"({column})::VARCHAR"  # numbers need no conversion to text
    functions = {"mean": "avg", "std": "stddev_samp", "smallest": "min", "largest": "max"} if is_number else {}
    facts = {
        "feature": sql_text(name),
        "null_share": f"1 - count({column}) / count(*)",
        "distinct": f"approx_count_distinct({different})",
        **{fact: f"{function}(({column})::DOUBLE)" for fact, function in functions.items()},
    }
    return f"struct_pack({', '.join(f'{sql_name(fact)} := {sql}' for fact, sql in facts.items())})"


def _facts(window: Window, rows: int, last: int | None, low: int, high: int, *features: dict[str, Any]) -> WindowFacts:
    facts = tuple(FeatureFacts(**feature) for feature in features)
    last_event = None if last is None else from_microseconds(last)
    return WindowFacts(window, rows, last_event, f"{rows}-{int(low):x}-{int(high):x}" if rows else "empty", facts)
