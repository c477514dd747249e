"""Pushed features as assets: rows of an upstream asset written online, offline or both."""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
from dagster_mlops.core.asset_records import dagster_facts, upstream_refs
from dagster_mlops.core.extras import extra
from dagster_mlops.core.metadata import ROW_COUNT
from dagster_mlops.core.options import asset_with
from dagster_mlops.core.table_hash import content_hash
from dagster_mlops.core.tables import as_table
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import FeatureStore, pa
from dagster_mlops.feast.metadata_keys import KEPT_NEWER, LAST_EVENT, ONLINE_WRITES
from dagster_mlops.feast.offline.source import rows_not_there
from dagster_mlops.feast.online.materialization import alone
from dagster_mlops.feast.online.row_validation import as_pandas, checked, refuse_empty
from dagster_mlops.feast.online.serving import newer_events_kept
from dagster_mlops.feast.repository import registry
from dagster_mlops.feast.repository.load import read_config
from dagster_mlops.feast.resource import FeastResource
from dagster_mlops.provenance import FeatureView

PushTarget = Literal["online", "offline", "online_and_offline"]


@dataclass(frozen=True)
class Pushed:
    """Result of a push.

    Attributes:
        views: Feature views that were pushed to, each with every row.
        rows: Number of pushed rows.
        first: Timestamp of the earliest event, in UTC; None without rows.
        last: Timestamp of the latest event.
        online_writes: Number of keys written online, of all views and batches together.
        kept_newer: Number of keys that were not written, because a newer event is online.
        offline_writes: Number of rows added to batch sources, which had the others already.
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
    rows: AssetLike | dg.AssetIn,
    push_source: str | None = None,
    feature_view: str | None = None,
    to: PushTarget = "online",
    batch_size: int = 10_000,
    partition_mapping: dg.PartitionMapping | None = None,
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset that writes the rows of another asset to every feature view of a push source, or to one feature view.

    Rows are checked against the views before the first is written. Offline, an existing row is not added a second time;
    online, an older event never replaces a newer one. So a push can be repeated, also after it was killed. The views
    are locked meanwhile. Needs a :class:`FeastResource` under the key ``feast``.

        visits_now = push_asset(
            name="visits_now", push_source="visits_push", rows="recent_visits", to="online_and_offline"
        )

    Args:
        rows: Asset with the rows: a pandas or polars dataframe or an Arrow table with the join keys, the timestamp
            (UTC without a time zone) and the features of the views; for `offline` exactly the columns of the batch
            source. Several partitions that are loaded as a dict are pushed in the order of their keys.
        push_source: Name of Feast's push source.
        feature_view: Name of a feature view to write to instead of a push source, as with Feast's
            ``write_to_online_store`` and ``write_to_offline_store``.
        to: Destination. With ``online_and_offline`` rows are written offline first, so that no served value is
            unavailable to a training set.
        batch_size: Number of rows that are written online at once.
        partition_mapping: Mapping to partitions of `rows`, if both are partitioned differently.
        asset_options: Further arguments of :func:`dagster.asset`. Name the assets of the feature views in ``deps``.

    Raises:
        FeatureError: `to` is not one of the three, or not exactly one of `push_source` and `feature_view` is given.
    """
    if to not in get_args(PushTarget):
        raise FeatureError(f"to={to!r} is not one of {', '.join(map(repr, get_args(PushTarget)))}.")
    if bool(push_source) == bool(feature_view):
        raise FeatureError(f"{name!r} needs either push_source=… or feature_view=… as the destination of its rows.")

    source = asset_input(rows, partition_mapping=partition_mapping)

    def pushed(context: dg.AssetExecutionContext, feast: FeastResource, rows: Any) -> dg.MaterializeResult:
        store, repo = feast.applied_store(), read_config(feast.repo).path
        table = as_table(rows, tool="feast", error=FeatureError)
        write, target = (push, push_source) if push_source else (write_to_view, feature_view or "")
        result = write(store, repo, target, table, to=to, batch_size=batch_size, timeout=feast.timeout)
        content = content_hash(table, tool="feast")
        metadata: dict[str, Any] = {
            ROW_COUNT: result.rows,
            **({"feast/push_source": push_source} if push_source else {}),
            "feast/views": list(result.views),
            ONLINE_WRITES: result.online_writes,
            KEPT_NEWER: result.kept_newer,
            "feast/offline_writes": result.offline_writes,
        }
        if result.first and result.last:
            metadata["feast/first_event"] = dg.MetadataValue.timestamp(result.first)
            metadata[LAST_EVENT] = dg.MetadataValue.timestamp(result.last)
        for view in result.views:
            version = f"push {registry.view_hash(store, view)} {content}"
            record = FeatureView(
                name=view,
                project=store.project,
                repo=str(repo),
                version=hashlib.sha256(version.encode()).hexdigest()[:32],
                start=result.first.isoformat() if result.first else "",
                end=result.last.isoformat() if result.last else "",
                rows=result.rows,
                upstream=upstream_refs(context),
                **dagster_facts(context),
            )
            registry.put_record(store, record)
            # One asset has records of several views, so their keys need the view's name.
            metadata[f"dagster_mlops/feature_view/{view}"] = dg.MetadataValue.json(record.to_dict())
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(content[:32]))

    return asset_with(
        asset_options,
        name=name,
        description=f"`{asset_key(source).to_user_string()}` pushed to `{push_source or feature_view}` "
        f"({to.replace('_', ' ')}).",
        kinds=["feast"],
        ins={"rows": source},
    )(pushed)


def push(
    store: FeatureStore,
    repo: Path,
    push_source: str,
    table: "pa.Table",
    *,
    to: PushTarget = "online",
    batch_size: int = 10_000,
    timeout: float = 600,
) -> Pushed:
    """Push `table` to every feature view of `push_source` of the Feast repository in the folder `repo`.

    Raises:
        FeatureError: The push source does not exist, a column is missing or of another type, a timestamp is missing, or
            another process locked one of the views for `timeout` seconds. Nothing was written.
    """
    views = _pushed_views(store, push_source)
    write = partial(store.push, push_source, allow_registry_cache=False, to=extra("feast.data_source").PushMode.ONLINE)
    return _write(store, repo, views, f"the push source {push_source!r}", table, write, to, batch_size, timeout)


def write_to_view(
    store: FeatureStore,
    repo: Path,
    feature_view: str,
    table: "pa.Table",
    *,
    to: PushTarget = "online",
    batch_size: int = 10_000,
    timeout: float = 600,
) -> Pushed:
    """Write `table` to one feature view, which needs no push source.

    Raises:
        FeatureError: As in :func:`push`; or it is an on-demand view, which Feast stores with the time of writing
            instead of the event timestamp, so that an older value could replace a newer one.
    """
    view: Any = registry.feature_view(store, feature_view)
    if getattr(view, "batch_source", None) is None:
        raise FeatureError(
            f"{feature_view!r} has no source of its own, so its rows would lose their event timestamps. Write to the "
            "feature views that it is computed from."
        )
    write = partial(store.write_to_online_store, feature_view, allow_registry_cache=False)
    return _write(store, repo, [view], f"feature view {feature_view!r}", table, write, to, batch_size, timeout)


def _write(
    store: FeatureStore,
    repo: Path,
    views: list[Any],
    destination: str,
    table: "pa.Table",
    write: Callable[[Any], None],
    to: PushTarget,
    batch_size: int,
    timeout: float,
) -> Pushed:
    names = tuple(view.name for view in views)
    table, time = checked(store, views, destination, table, offline="offline" in to)
    if not table.num_rows:
        return Pushed(names)
    table = table.sort_by(time)
    batches = [table.slice(first, batch_size) for first in range(0, table.num_rows, batch_size)]
    if "online" in to:
        refuse_empty(views, batches)

    added = keys = kept_newer = 0
    with ExitStack() as locks:
        for view in views:
            locks.enter_context(alone(store, repo, view.name, timeout))
        if "offline" in to:
            # Views that share a batch source would each append the same rows to it.
            for view in {view.batch_source.name: view for view in views}.values():
                new = rows_not_there(store, view, table)
                added += new.num_rows
                if new.num_rows:
                    store.write_to_offline_store(view.name, as_pandas(new), allow_registry_cache=False)
        if "online" in to:
            with newer_events_kept(store) as writes:
                for batch in batches:
                    write(as_pandas(batch))
            keys, kept_newer = writes.keys, writes.kept_newer
    return Pushed(names, table.num_rows, table[time][0].as_py(), table[time][-1].as_py(), keys, kept_newer, added)


def _pushed_views(store: FeatureStore, push_source: str) -> list[Any]:
    """The feature views of a push source, sorted by name, which is the order in which they are locked."""
    every: list[Any] = store.registry.list_all_feature_views(store.project)
    streams = {view.name: view for view in every if getattr(view, "stream_source", None) is not None}
    views = [streams[name] for name in sorted(streams) if streams[name].stream_source.name == push_source]
    if not views:
        sources_in_use = ", ".join(sorted({view.stream_source.name for view in streams.values()})) or "none"
        raise FeatureError(
            f"project {store.project!r} has no feature view with the push source {push_source!r} (push sources in "
            f"use: {sources_in_use}). Give a feature view source=PushSource(name={push_source!r}, batch_source=…)."
        )
    return views
