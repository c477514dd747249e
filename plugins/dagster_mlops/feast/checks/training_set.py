"""Gates on a training set: it is fit to train on, and holds no value that was not known at its row's time."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.asset_records import latest
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.extras import extra
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.metadata import table
from dagster_mlops.core.table_hash import content_hash
from dagster_mlops.core.tables import as_table, sql_name
from dagster_mlops.core.upstream import loaded_value
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import FeatureStore, pa
from dagster_mlops.feast.metadata_keys import NULL_SHARES
from dagster_mlops.feast.offline.retrieval import types_in
from dagster_mlops.feast.repository.registry import feature_service
from dagster_mlops.provenance import TrainingSet

if TYPE_CHECKING:
    from dagster_mlops.feast.point_in_time.leakage import Origins

_DISTINCT = "count(DISTINCT {})"
_Bounds = float | Mapping[str, float]


def training_set_checks(
    *,
    asset: AssetLike,
    feature_service: str | None = None,
    timestamp_column: str = "event_timestamp",
    label: str | None = None,
    max_null_share: _Bounds = 0.5,
    max_expired_share: _Bounds = 0.5,
    max_distinct_share: float = 0.9,
    constant: Sequence[str] = (),
    unique: Sequence[str] = (),
    sample: int = 1000,
    seed: int = 0,
    blocking: bool = True,
    **check_options: Any,
) -> list[dg.AssetChecksDefinition]:
    """Checks on a training set, in one step that loads it once.

    ``null_shares``: no column has too many missing values. ``no_duplicates``: no row occurs twice. With a feature
    service also ``rows_kept``: the stored rows are the joined ones; ``no_leakage``: no value comes from
    after its row's timestamp, by the views' own sources; ``ttl_misses``: a view's newest row is rarely older than its
    ttl; ``cardinality``: no feature is constant, and no text differs in almost every row. The last two only warn.

        training_set_checks(
            asset="training_set", feature_service="arrival_delay", timestamp_column="scheduled", label="late",
            max_null_share={"wind_speed": 0.05}, unique=["flight_id"],
        )

    Args:
        feature_service: Name of the feature service; needs a :class:`FeastResource` under the key ``feast``.
        label: Column that no feature may equal.
        max_null_share: Maximum share of missing values, for every column or by column.
        max_expired_share: Maximum share of rows whose newest source row is older than the ttl, for every feature view
            or by feature view.
        max_distinct_share: Maximum share of distinct values in a text column.
        constant: Features that may have only one value.
        unique: Columns that identify a row; without them, duplicates are not checked.
        sample: Number of rows that are looked up in the sources; `seed` alone decides which ones.
        check_options: Further arguments of :func:`dagster.asset_check`.
    """
    key = asset_key(asset)
    judges: dict[str, tuple[str, Callable[[_TrainingSetData], dg.AssetCheckResult]]] = {
        "null_shares": ("Few values of each column are missing.", lambda data: _null_shares(data, max_null_share))
    }
    if unique:
        judges["no_duplicates"] = (f"{', '.join(unique)} is unique.", lambda data: _no_duplicates(data, unique))
    if feature_service:
        judges |= {
            "rows_kept": ("The stored rows are the joined rows.", _rows_kept),
            "no_leakage": (
                "No value is later than its row's timestamp, and no feature is the label.",
                lambda data: _no_leakage(data, label),
            ),
            "ttl_misses": (
                "The newest row of a view is rarely older than its ttl.",
                lambda data: _ttl_misses(data, max_expired_share),
            ),
            "cardinality": (
                "No feature is constant, no text differs in almost every row.",
                lambda data: _cardinality(data, max_distinct_share, constant),
            ),
        }
    checks = asset_checks(
        asset=key,
        tool="feast",
        judges=judges,
        evidence=lambda context: _TrainingSetData(context, key, feature_service or "", timestamp_column, sample, seed),
        blocking=blocking,
        name=f"{key.to_python_identifier()}_checks",
        required_resource_keys=["feast"] if feature_service else (),
        options=check_options,
    )
    return [checks]


@lazy_dataclass()
class _TrainingSetData:
    """A stored training set, of which each part that several checks need is read once."""

    context: dg.AssetCheckExecutionContext
    key: dg.AssetKey
    service: str
    timestamp_column: str
    sample: int
    seed: int

    @property
    def partition(self) -> str | None:
        return self.context.partition_key if self.context.has_partition_key else None

    @cached_property
    def table(self) -> "pa.Table":
        frame = loaded_value(self.context.op_execution_context, self.key, partition=self.partition)
        return as_table(frame, tool="feast", error=FeatureError)

    @cached_property
    def store(self) -> "FeatureStore":
        return self.context.resources.feast.store()

    @cached_property
    def types(self) -> dict[str, str]:
        return types_in(feature_service(self.store, self.service), self.table.column_names)

    @cached_property
    def origins(self) -> "tuple[list[Origins], dict[str, str]]":
        from dagster_mlops.feast.point_in_time.leakage import origins  # it imports Feast

        return origins(self.store, self.service, self.table, self.timestamp_column, sample=self.sample, seed=self.seed)

    def measured(self, facts: Mapping[str, str], columns: Sequence[str]) -> dict[str, dict[str, int]]:
        """SQL aggregates of columns in one pass, as fact → column → count. ``{}`` in the SQL is the column."""
        if missing := [column for column in columns if column not in self.table.column_names]:
            raise FeatureError(
                f"{self.key.to_user_string()} has no columns {', '.join(missing)} "
                f"(it has: {', '.join(self.table.column_names)})."
            )
        if not columns or not facts:
            return {fact: {} for fact in facts}
        expressions = [sql.format(sql_name(column)) for sql in facts.values() for column in columns]
        with extra("duckdb", extra="feast").connect() as connection:
            connection.register("training_set", self.table)
            [counts] = connection.execute(f"SELECT {', '.join(expressions)} FROM training_set").fetchall()
        values = iter(counts)
        return {fact: {column: next(values) for column in columns} for fact in facts}


def _null_shares(data: _TrainingSetData, most: _Bounds) -> dg.AssetCheckResult:
    bounds = most if isinstance(most, Mapping) else dict.fromkeys(data.table.column_names, most)
    present = data.measured({"present": "count({})"}, list(bounds))["present"]
    count = data.table.num_rows
    shares = {column: 1 - present[column] / count if count else 1.0 for column in bounds}
    over = {column: share for column, share in shares.items() if share > bounds[column]}
    rows = [{"column": c, "null share": s, "at most": bounds[c]} for c, s in shares.items()]
    return dg.AssetCheckResult(
        passed=not over,
        description=_named("too often missing", over),
        metadata={**{f"feast/null_share/{c}": s for c, s in shares.items()}, **table(NULL_SHARES, rows)},
    )


def _no_duplicates(data: _TrainingSetData, unique: Sequence[str]) -> dg.AssetCheckResult:
    data.measured({}, list(unique))  # refuses unknown columns
    repeated = data.table.num_rows - data.table.group_by(list(unique)).aggregate([]).num_rows
    return dg.AssetCheckResult(
        passed=repeated == 0, metadata={"feast/duplicates": repeated, "feast/rows": data.table.num_rows}
    )


def _rows_kept(data: _TrainingSetData) -> dg.AssetCheckResult:
    hint = "Materialize it."
    record = latest(data.context, data.key, TrainingSet, partition=data.partition, error=FeatureError, hint=hint)
    rows, stored_hash = data.table.num_rows, content_hash(data.table, tool="feast")
    same = not record.content_hash or stored_hash == record.content_hash
    row_problem = "" if rows == record.rows else f"{rows} rows are stored, and {record.rows} were joined"
    value_problem = "" if same else "the IO manager loads other values or types than were stored"
    return dg.AssetCheckResult(
        passed=not row_problem and same,
        # Types that a storage cannot keep are worth a warning; a training set with lost rows must not be used.
        severity=dg.AssetCheckSeverity.ERROR if row_problem else dg.AssetCheckSeverity.WARN,
        description=row_problem or value_problem or None,
        metadata={"feast/rows": rows, "feast/rows_joined": record.rows or 0, "feast/content_hash": stored_hash},
    )


def _no_leakage(data: _TrainingSetData, label: str | None) -> dg.AssetCheckResult:
    views, left_out = data.origins
    leaked = {f"{origin.view} ({', '.join(origin.features)})": origin.leaked for origin in views if origin.leaked}
    problems = [f"{name}: {count} rows hold values from later" for name, count in leaked.items()]
    problems += [f"feature {feature} is the label" for feature in (_equal_to(data, label) if label else ())]
    unseen = "" if views else f"no value could be looked up: {', '.join(f'{k}: {v}' for k, v in left_out.items())}"
    rows = [
        {
            "feature view": origin.view,
            "feature": feature,
            "rows": origin.rows,
            "from the newest row": origin.matching,
            "from later": origin.leaked,
            "not in the source": origin.unexplained,
            "nearest (s)": origin.nearest,
            "latest (s)": origin.lead,
            "created later": origin.created_late,
        }
        for origin in views
        for feature in origin.features
    ]
    return dg.AssetCheckResult(
        passed=not problems and not unseen,
        severity=dg.AssetCheckSeverity.ERROR if problems else dg.AssetCheckSeverity.WARN,
        description="; ".join(problems) or unseen or None,
        metadata={
            "feast/leaked_rows": sum(origin.leaked for origin in views),
            "feast/rows_not_in_source": sum(origin.unexplained for origin in views),
            "feast/rows_created_later": sum(origin.created_late or 0 for origin in views),
            "feast/sampled_rows": max((origin.rows for origin in views), default=0),
            **table("feast/origins", rows),
            **({"feast/not_looked_up": left_out} if left_out else {}),
        },
    )


def _equal_to(data: _TrainingSetData, label: str) -> list[str]:
    """Features that are the label, or equal it in every row; nothing equals a constant label."""
    data.measured({}, [label])  # refuses an unknown column
    other = [feature for feature in data.types if feature in data.table.column_names and feature != label]
    column = sql_name(label)
    differ = "count(*) FILTER (WHERE coalesce(try_cast({0} AS DOUBLE)::VARCHAR, {0}::VARCHAR) IS DISTINCT FROM "
    differ += f"coalesce(try_cast({column} AS DOUBLE)::VARCHAR, {column}::VARCHAR))"
    facts = data.measured({"differ": differ, "distinct": _DISTINCT}, other)
    equal = [name for name in other if facts["differ"][name] == 0 and facts["distinct"][name] > 1]
    return [*({label} & set(data.types)), *equal]


def _ttl_misses(data: _TrainingSetData, most: _Bounds) -> dg.AssetCheckResult:
    views, _ = data.origins
    bounds = most if isinstance(most, Mapping) else {origin.view: most for origin in views}
    if unknown := sorted(set(bounds) - {origin.view for origin in views}):
        raise FeatureError(
            f"{', '.join(unknown)} is not a feature view with a file source in {data.service!r} "
            f"(there are: {', '.join(origin.view for origin in views) or 'none'})."
        )
    shares = {origin.view: origin.expired / max(origin.rows, 1) for origin in views}
    over = {view: shares[view] for view, bound in bounds.items() if shares[view] > bound}
    rows = [
        {"feature view": o.view, "rows": o.rows, "beyond the ttl": o.expired, "never anything": o.without_source}
        for o in views
    ]
    return dg.AssetCheckResult(
        passed=not over,
        severity=dg.AssetCheckSeverity.WARN,
        description=_named("too often beyond the ttl", over),
        metadata={
            **{f"feast/expired_share/{view}": share for view, share in shares.items()},
            **table("feast/ttl_misses", rows),
        },
    )


def _cardinality(data: _TrainingSetData, most: float, constant: Sequence[str]) -> dg.AssetCheckResult:
    types = data.types
    facts = data.measured({"present": "count({})", "distinct": _DISTINCT}, list(types))
    distinct, present = facts["distinct"], facts["present"]
    stuck = [name for name in types if distinct[name] <= 1 and name not in constant]
    text = [name for name, kind in types.items() if kind == "String" and present[name] > 1]
    exploding = {name: distinct[name] / present[name] for name in text if distinct[name] / present[name] > most}
    problems = [f"constant: {', '.join(stuck)}"] * bool(stuck)
    problems += [_named("differs in almost every row", exploding) or ""] * bool(exploding)
    rows = [{"feature": f, "values": present[f], "different": distinct[f]} for f in types]
    return dg.AssetCheckResult(
        passed=not problems,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(problems) or None,
        metadata={
            "feast/constant_features": len(stuck),
            **{f"feast/distinct/{name}": distinct[name] for name in types},
            **table("feast/cardinality", rows),
        },
    )


def _named(problem: str, columns: Mapping[str, float]) -> str | None:
    return f"{problem}: " + ", ".join(f"{c} ({share:.1%})" for c, share in columns.items()) if columns else None
