"""Gates on a training set: it is fit to train on, and holds nothing that was not known at the time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.asset_records import latest_records
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.extras import extra
from dagster_mlops.core.metadata import table
from dagster_mlops.core.table_hash import content_hash
from dagster_mlops.core.tables import as_table, sql_name
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.checks.leakage import Origins, origins
from dagster_mlops.feast.metadata_keys import NULL_SHARES
from dagster_mlops.feast.offline.retrieval import feature_types
from dagster_mlops.feast.repository.registry import feature_service
from dagster_mlops.feast.resource import FeastResource
from dagster_mlops.provenance import TrainingSet

if TYPE_CHECKING:
    import pyarrow as pa

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

    ``null_shares``: no column is missing too often. ``no_duplicates``: no row is there twice. With a feature service,
    further ``rows_kept``: what is stored is what was joined; ``no_leakage``: no value comes from after its row's
    moment, looked up in the views' own sources; ``ttl_misses``: a view's newest row is seldom older than its ttl;
    ``cardinality``: no feature is constant, and no text differs in almost every row. The last two only warn.

        training_set_checks(
            asset="training_set", feature_service="arrival_delay", timestamp_column="scheduled", label="late",
            max_null_share={"wind_speed": 0.05}, unique=["flight_id"],
        )

    Args:
        feature_service: Needs a :class:`FeastResource` under the key ``feast``.
        label: A column that no feature may equal.
        max_null_share: Largest allowed share of missing values, for every column or by column.
        max_expired_share: Largest allowed share of rows whose newest source row is beyond the ttl, for every feature
            view or by feature view.
        max_distinct_share: Largest allowed share of different values in a column of text.
        constant: Features that may have one value only.
        unique: Columns that together name a row; without any, there is no check of duplicates.
        sample: How many rows are looked up in the sources; which ones depends on `seed` alone.
        check_options: Whatever else :func:`dagster.asset_check` takes.
    """
    key = asset_key(asset)
    judges: dict[str, tuple[str, Callable[[_Judged], dg.AssetCheckResult]]] = {
        "null_shares": ("No column is missing too often.", lambda judged: _null_shares(judged, max_null_share))
    }
    if unique:
        judges["no_duplicates"] = (f"{', '.join(unique)} is unique.", lambda judged: _no_duplicates(judged, unique))
    if feature_service:
        service = feature_service
        judges |= {
            "rows_kept": ("What is stored is what was joined.", _rows_kept),
            "no_leakage": (
                "No value comes from after its row's moment, and no feature is the label.",
                lambda judged: _no_leakage(judged, label),
            ),
            "ttl_misses": (
                "The newest row of a view is seldom beyond its ttl.",
                lambda judged: _ttl_misses(judged, max_expired_share),
            ),
            "cardinality": (
                "No feature is constant, no text differs in almost every row.",
                lambda judged: _cardinality(judged, service, max_distinct_share, constant),
            ),
        }
    return [
        asset_checks(
            asset=key,
            tool="feast",
            judges=judges,
            evidence=lambda context: _Judged(
                context,
                key,
                context.resources.feast if feature_service else None,
                feature_service or "",
                timestamp_column,
                sample,
                seed,
            ),
            blocking=blocking,
            name=f"{key.to_python_identifier()}_checks",
            required_resource_keys=["feast"] if feature_service else (),
            options=check_options,
        )
    ]


@dataclass
class _Judged:
    """A stored training set; what several checks need is read once."""

    context: dg.AssetCheckExecutionContext
    key: dg.AssetKey
    feast: FeastResource | None
    service: str
    timestamp_column: str
    sample: int
    seed: int

    @property
    def partition(self) -> str | None:
        return self.context.partition_key if self.context.has_partition_key else None

    @cached_property
    def table(self) -> "pa.Table":
        frame = self.context.op_execution_context.load_asset_value(self.key, partition_key=self.partition)
        return as_table(frame, tool="feast", error=FeatureError)

    @cached_property
    def origins(self) -> tuple[list[Origins], dict[str, str]]:
        assert self.feast is not None  # required with a feature service, and not asked for without
        return origins(
            self.feast.store(),
            self.service,
            self.table,
            timestamp_column=self.timestamp_column,
            sample=self.sample,
            seed=self.seed,
        )

    def measured(self, facts: Mapping[str, str], columns: Sequence[str]) -> dict[str, dict[str, int]]:
        """SQL aggregates of columns, in one pass: fact → column → count. In the SQL, ``{}`` is the column."""
        if missing := [column for column in columns if column not in self.table.column_names]:
            raise FeatureError(
                f"{self.key.to_user_string()} has no columns {', '.join(missing)} "
                f"(it has: {', '.join(self.table.column_names)})."
            )
        if not columns or not facts:
            return {fact: {} for fact in facts}
        asked = [sql.format(sql_name(column)) for sql in facts.values() for column in columns]
        with extra("duckdb", extra="feast").connect() as connection:
            connection.register("training_set", self.table)
            [counts] = connection.execute(f"SELECT {', '.join(asked)} FROM training_set").fetchall()
        values = iter(counts)
        return {fact: {column: next(values) for column in columns} for fact in facts}


def _null_shares(judged: _Judged, most: _Bounds) -> dg.AssetCheckResult:
    bounds = most if isinstance(most, Mapping) else dict.fromkeys(judged.table.column_names, most)
    present = judged.measured({"present": "count({})"}, list(bounds))["present"]
    count = judged.table.num_rows
    shares = {column: 1 - present[column] / count if count else 1.0 for column in bounds}
    over = {column: share for column, share in shares.items() if share > bounds[column]}
    rows = [{"column": c, "null share": s, "at most": bounds[c]} for c, s in shares.items()]
    return dg.AssetCheckResult(
        passed=not over,
        description=_named("too often missing", over),
        metadata={**{f"feast/null_share/{c}": s for c, s in shares.items()}, **table(NULL_SHARES, rows)},
    )


def _no_duplicates(judged: _Judged, unique: Sequence[str]) -> dg.AssetCheckResult:
    judged.measured({}, list(unique))  # refuses unknown columns
    groups = judged.table.group_by(list(unique)).aggregate([]).num_rows
    repeated = judged.table.num_rows - groups
    return dg.AssetCheckResult(
        passed=repeated == 0, metadata={"feast/duplicates": repeated, "feast/rows": judged.table.num_rows}
    )


def _rows_kept(judged: _Judged) -> dg.AssetCheckResult:
    known = latest_records(judged.context.instance, judged.key, [judged.partition] if judged.partition else None)
    record = next((record for record in known if isinstance(record, TrainingSet)), None)
    if record is None:
        raise FeatureError(f"{judged.key.to_user_string()} has no record of a training set. Materialize it.")
    rows, found = judged.table.num_rows, content_hash(judged.table, tool="feast")
    same = not record.content_hash or found == record.content_hash
    lost = "" if rows == record.rows else f"{rows} rows are stored, and {record.rows} were joined"
    changed = "" if same else "the IO manager gives other values or types back than it was given"
    return dg.AssetCheckResult(
        passed=not lost and same,
        # Types that a storage cannot keep are worth a warning; lost rows are not to be trained on.
        severity=dg.AssetCheckSeverity.ERROR if lost else dg.AssetCheckSeverity.WARN,
        description=lost or changed or None,
        metadata={"feast/rows": rows, "feast/rows_joined": record.rows or 0, "feast/content_hash": found},
    )


def _no_leakage(judged: _Judged, label: str | None) -> dg.AssetCheckResult:
    found, left_out = judged.origins
    same = _equal_to(judged, label) if label else []
    leaked = {f"{origin.view} ({', '.join(origin.features)})": origin.leaked for origin in found if origin.leaked}
    problems = [f"{name}: {count} rows hold what came later" for name, count in leaked.items()]
    problems += [f"feature {feature} is the label" for feature in same]
    unseen = "" if found else f"no value could be looked up: {', '.join(f'{k}: {v}' for k, v in left_out.items())}"
    rows = [
        {
            "feature view": origin.view,
            "feature": feature,
            "rows": origin.rows,
            "from the newest row": origin.known,
            "from later": origin.leaked,
            "not in the source": origin.unexplained,
            "nearest (s)": origin.nearest,
            "latest (s)": origin.lead,
            "created later": origin.known_late,
        }
        for origin in found
        for feature in origin.features
    ]
    return dg.AssetCheckResult(
        passed=not problems and not unseen,
        severity=dg.AssetCheckSeverity.ERROR if problems else dg.AssetCheckSeverity.WARN,
        description="; ".join(problems) or unseen or None,
        metadata={
            "feast/leaked_rows": sum(origin.leaked for origin in found),
            "feast/rows_not_in_source": sum(origin.unexplained for origin in found),
            "feast/rows_created_later": sum(origin.known_late or 0 for origin in found),
            "feast/sampled_rows": max((origin.rows for origin in found), default=0),
            **table("feast/origins", rows),
            **({"feast/not_looked_up": left_out} if left_out else {}),
        },
    )


def _equal_to(judged: _Judged, label: str) -> list[str]:
    """Features that are the label, or equal it in every row; a label that is constant is equal to nothing."""
    judged.measured({}, [label])  # refuses an unknown column
    assert judged.feast is not None  # as for the origins
    types = feature_types(feature_service(judged.feast.store(), judged.service))
    features = [feature for feature in types if feature in judged.table.column_names]
    other = [feature for feature in features if feature != label]
    column = sql_name(label)
    differ = "count(*) FILTER (WHERE coalesce(try_cast({0} AS DOUBLE)::VARCHAR, {0}::VARCHAR) IS DISTINCT FROM "
    differ += f"coalesce(try_cast({column} AS DOUBLE)::VARCHAR, {column}::VARCHAR))"
    facts = judged.measured({"differ": differ, "distinct": _DISTINCT}, other)
    equal = [name for name in other if facts["differ"][name] == 0 and facts["distinct"][name] > 1]
    return [*({label} & set(features)), *equal]


def _ttl_misses(judged: _Judged, most: _Bounds) -> dg.AssetCheckResult:
    found, _ = judged.origins
    bounds = most if isinstance(most, Mapping) else {origin.view: most for origin in found}
    if unknown := sorted(set(bounds) - {origin.view for origin in found}):
        raise FeatureError(
            f"{', '.join(unknown)} is no feature view with a file source in {judged.service!r} "
            f"(there are: {', '.join(origin.view for origin in found) or 'none'})."
        )
    shares = {origin.view: origin.expired / max(origin.rows, 1) for origin in found}
    over = {view: shares[view] for view, bound in bounds.items() if shares[view] > bound}
    rows = [
        {"feature view": o.view, "rows": o.rows, "beyond the ttl": o.expired, "never anything": o.unheard}
        for o in found
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


def _cardinality(judged: _Judged, service: str, most: float, constant: Sequence[str]) -> dg.AssetCheckResult:
    assert judged.feast is not None
    types = feature_types(feature_service(judged.feast.store(), service))
    facts = judged.measured({"present": "count({})", "distinct": _DISTINCT}, list(types))
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
