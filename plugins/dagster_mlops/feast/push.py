"""Pushed features as assets: rows of an upstream asset written online, offline or both through Feast's push source."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import dagster as dg

from dagster_mlops._extras import extra
from dagster_mlops.asset_records import dagster_facts, upstream_refs
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import registry
from dagster_mlops.feast.frame_hash import as_table, content_hash
from dagster_mlops.feast.materialization import alone
from dagster_mlops.feast.online import newer_events_kept
from dagster_mlops.feast.repository import read_config
from dagster_mlops.feast.resource import FeastResource
from dagster_mlops.feast.retrieval import join_keys
from dagster_mlops.feast.source import rows_not_there
from dagster_mlops.provenance import FeatureView

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore

To = Literal["online", "offline", "online_and_offline"]


@dataclass(frozen=True)
class Pushed:
    """What became of the rows of a push.

    Attributes:
        views: The feature views that were pushed to, each of which got every row.
        rows: How many rows were given.
        first: Moment of the earliest event, in UTC; None without rows.
        last: Moment of the latest.
        online_writes: Keys written online, of all views and batches together.
        kept_newer: Keys of a batch that were not, because a newer event of theirs is online.
        offline_writes: Rows added to batch sources; the others were there already.
    """

    views: tuple[str, ...]
    rows: int = 0
    first: datetime | None = None
    last: datetime | None = None
    online_writes: int = 0
    kept_newer: int = 0
    offline_writes: int = 0


def push_asset(
    *,
    name: str,
    push_source: str,
    rows: dg.AssetKey,
    to: To = "online",
    batch_size: int = 10_000,
    deps: Sequence[Any] = (),
    partitions_def: dg.PartitionsDefinition | None = None,
    partition_mapping: dg.PartitionMapping | None = None,
    group_name: str | None = None,
    key_prefix: Sequence[str] | None = None,
    description: str | None = None,
    automation_condition: dg.AutomationCondition | None = None,
    pool: str | None = None,
) -> dg.AssetsDefinition:
    """An asset that pushes the rows of another asset to every feature view of a push source.

    Rows are checked against the views before the first is written. Offline, a row that is there already is not added
    again; online, an older event never replaces a newer one. So a push can be repeated, or killed and repeated, and
    nobody else loads the same views meanwhile. Needs a :class:`FeastResource` under the key ``feast``.

        visits_now = push_asset(
            name="visits_now", push_source="visits_push", rows=dg.AssetKey("recent_visits"), to="online_and_offline"
        )

    Args:
        push_source: Name of Feast's push source.
        rows: The asset that gives the rows: a pandas or polars dataframe or an Arrow table with the join keys, the
            timestamp (without a time zone it is UTC) and the features of the views; for `offline` exactly the columns
            of the batch source. Several partitions that come as a dict are pushed in the order of their keys.
        to: Where rows go. With ``online_and_offline`` they are offline first: nothing is served that a training set
            could not have.
        batch_size: How many rows are written online at once.
        deps: Assets besides `rows`, e.g. those of the feature views.
        pool: Concurrency pool, as for :func:`dagster_mlops.feast.feature_view_assets`.

    Raises:
        FeatureError: `to` is none of the three.
    """
    if to not in get_args(To):
        raise FeatureError(f"to={to!r} is none of {', '.join(map(repr, get_args(To)))}.")

    @dg.asset(
        name=name,
        key_prefix=key_prefix,
        ins={"rows": dg.AssetIn(rows, partition_mapping=partition_mapping)},
        deps=deps,
        partitions_def=partitions_def,
        group_name=group_name,
        description=description or f"`{rows.to_user_string()}` pushed to `{push_source}` ({to.replace('_', ' ')}).",
        automation_condition=automation_condition,
        pool=pool,
        kinds={"feast"},
    )
    def pushed(context: dg.AssetExecutionContext, feast: FeastResource, rows: Any) -> dg.MaterializeResult:
        store, repo = feast.applied_store(), read_config(feast.repo).path
        parts = [as_table(rows[key]) for key in sorted(rows)] if isinstance(rows, dict) else [as_table(rows)]
        table = extra("pyarrow", extra="feast").concat_tables(parts, promote_options="permissive")
        done = push(store, repo, push_source, table, to=to, batch_size=batch_size, timeout=feast.timeout)
        content = content_hash(table)
        metadata: dict[str, Any] = {
            "dagster/row_count": done.rows,
            "feast/push_source": push_source,
            "feast/views": list(done.views),
            "feast/online_writes": done.online_writes,
            "feast/kept_newer": done.kept_newer,
            "feast/offline_writes": done.offline_writes,
        }
        if done.first and done.last:
            metadata["feast/first_event"] = dg.MetadataValue.timestamp(done.first)
            metadata["feast/last_event"] = dg.MetadataValue.timestamp(done.last)
        for view in done.views:
            version = f"push {registry.view_hash(store, view)} {content}"
            record = FeatureView(
                name=view,
                project=store.project,
                repo=str(repo),
                version=hashlib.sha256(version.encode()).hexdigest()[:32],
                start=done.first.isoformat() if done.first else "",
                end=done.last.isoformat() if done.last else "",
                rows=done.rows,
                upstream=upstream_refs(context),
                **dagster_facts(context),
            )
            registry.put_record(store, record)
            # One asset, several views: the name tells their records apart.
            metadata[f"dagster_mlops/feature_view/{view}"] = dg.MetadataValue.json(record.to_dict())
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(content[:32]))

    return pushed


def push(
    store: "FeatureStore",
    repo: Path,
    push_source: str,
    table: "pa.Table",
    *,
    to: To = "online",
    batch_size: int = 10_000,
    timeout: float = 600,
) -> Pushed:
    """Push `table` to every feature view of `push_source`, in the folder `repo`, and say what became of its rows.

    Raises:
        FeatureError: there is no such push source, a column is missing or of another type, a timestamp is missing, or
            another process kept one of the views for `timeout` seconds. Nothing was written.
    """
    views = _pushed_views(store, push_source)
    names = tuple(view.name for view in views)
    table, time = _checked(store, views, push_source, table, to)
    if not table.num_rows:
        return Pushed(names)
    table = table.sort_by(time)
    batches = [table.slice(first, batch_size) for first in range(0, table.num_rows, batch_size)]
    if "online" in to:
        _refuse_empty(views, batches)

    added = keys = kept = 0
    with ExitStack() as held:
        for view in views:
            held.enter_context(alone(store, repo, view.name, timeout))
        if "offline" in to:
            # Views that share a batch source would each append the same rows to it.
            for view in {view.batch_source.name: view for view in views}.values():
                new = rows_not_there(store, view, table)
                added += new.num_rows
                if new.num_rows:
                    store.write_to_offline_store(view.name, _frame(new), allow_registry_cache=False)
        if "online" in to:
            mode = extra("feast.data_source").PushMode.ONLINE
            with newer_events_kept(store) as written:
                for batch in batches:
                    store.push(push_source, _frame(batch), allow_registry_cache=False, to=mode)
            keys, kept = written.keys, written.kept
    return Pushed(names, table.num_rows, table[time][0].as_py(), table[time][-1].as_py(), keys, kept, added)


def _pushed_views(store: "FeatureStore", push_source: str) -> list[Any]:
    """The feature views that the push source feeds, by name: the order in which their locks are taken."""
    every: list[Any] = store.registry.list_all_feature_views(store.project)
    streams = {view.name: view for view in every if getattr(view, "stream_source", None) is not None}
    found = [streams[name] for name in sorted(streams) if streams[name].stream_source.name == push_source]
    if not found:
        known = ", ".join(sorted({view.stream_source.name for view in streams.values()})) or "none"
        raise FeatureError(
            f"project {store.project!r} has no feature view with the push source {push_source!r} (push sources in "
            f"use: {known}). Give a feature view source=PushSource(name={push_source!r}, batch_source=…)."
        )
    return found


def _checked(
    store: "FeatureStore", views: list[Any], push_source: str, table: "pa.Table", to: To
) -> tuple["pa.Table", str]:
    """`table` in Feast's types with its moments in UTC, and the name of their column; or what is wrong with it."""
    pa, feast_types = extra("pyarrow", extra="feast"), extra("feast.types")
    problems: list[str] = []
    wanted: dict[str, Any] = {}
    times = {view.batch_source.timestamp_field for view in views}
    for view in views:
        for column in [*view.entity_columns, *view.features]:
            if not column.name.startswith("__"):
                wanted[column.name] = feast_types.from_feast_to_pyarrow_type(column.dtype)
    keys = {key for view in views for key in join_keys(view)}
    wanted |= {time: pa.timestamp("us", tz="UTC") for time in times}
    if len(times) > 1:
        problems.append(f"its views name their timestamp differently: {', '.join(sorted(times))}")
    missing = sorted(set(wanted) - set(table.column_names))
    if missing:
        problems.append(f"the columns {', '.join(missing)} are missing (it has: {', '.join(table.column_names)})")
    if "offline" in to:
        for view in views:
            there = {name for name, _ in view.batch_source.get_table_column_names_and_types(store.config)}
            if there != set(table.column_names):
                problems.append(
                    f"the batch source of {view.name!r} has exactly the columns {', '.join(sorted(there))}, "
                    f"and these rows have {', '.join(sorted(table.column_names))}"
                )
    for name in sorted(set(wanted) & set(table.column_names)):
        column, target = table[name], wanted[name]
        try:
            if _family(column.type) not in (_family(target), "null") and (
                (_family(column.type), _family(target)) not in {("whole", "real"), ("real", "whole")}
            ):
                raise pa.ArrowInvalid("another kind of value")
            if pa.types.is_timestamp(target):
                # Feast's stores keep microseconds; what is finer is cut off.
                column = column.cast(pa.timestamp("us", tz=column.type.tz or "UTC"), safe=False)
            table = table.set_column(table.schema.get_field_index(name), name, column.cast(target))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            problems.append(f"{name!r} is {column.type} and must be {target} ({error})")
            continue
        if name in keys | times and column.null_count:
            problems.append(f"{name!r} is missing in {column.null_count} rows")
    if problems:
        raise FeatureError(
            f"rows for the push source {push_source!r} were refused, and nothing was written: {'; '.join(problems)}."
        )
    return table, times.pop()


def _family(type: "pa.DataType") -> str:
    """What kind of values a column holds, whatever their width."""
    types = extra("pyarrow", extra="feast").types
    if types.is_dictionary(type):
        return _family(type.value_type)
    if types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type):
        return f"list of {_family(type.value_type)}"
    tests = {"whole": "integer", "real": "floating", "time": "timestamp"}
    text = types.is_string(type) or types.is_large_string(type) or types.is_string_view(type)
    raw = types.is_binary(type) or types.is_large_binary(type)
    named = [family for family, test in tests.items() if getattr(types, f"is_{test}")(type)]
    return "text" if text else "bytes" if raw else named[0] if named else str(type)


def _refuse_empty(views: list[Any], batches: list["pa.Table"]) -> None:
    """Feast writes nothing, and only warns, where every feature of every row is missing: an old value would stay."""
    for view in views:
        names = [feature.name for feature in view.features]
        if any(all(batch[name].null_count == batch.num_rows for name in names) for batch in batches):
            raise FeatureError(
                f"rows for feature view {view.name!r} have no value of {', '.join(names)} at all, and Feast does not "
                "write such rows. Nothing was written. Leave them out, or push them together with others."
            )


def _frame(table: "pa.Table") -> Any:
    """As pandas, with Arrow's types: a whole number stays one where some are missing."""
    return table.to_pandas(types_mapper=extra("pandas", extra="feast").ArrowDtype)
