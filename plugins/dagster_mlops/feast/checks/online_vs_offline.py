"""Samples of the values served online, compared with the offline store's for the same entities and timestamps."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from dagster_mlops.core.metadata import about
from dagster_mlops.core.timestamps import MICROSECOND, utc
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import FeatureStore, pd
from dagster_mlops.feast.offline.retrieval import (
    is_on_demand,
    is_stored,
    join_keys,
    normalised,
    point_in_time,
    request_columns,
)
from dagster_mlops.feast.offline.source import Window, latest_events
from dagster_mlops.feast.offline.stored_views import latest_entities
from dagster_mlops.feast.online.materialization import loaded_windows
from dagster_mlops.feast.online.reading import on_demand_values, served_values
from dagster_mlops.feast.repository import registry

_SECOND = timedelta(seconds=1)
_ONE_BY_ONE = 20  # rows of an on-demand view that are requested one at a time, as from a server
# Python type of a value read by Feast; another type means that it was written as another type than the feature's.
_KINDS: dict[str, type] = {
    **dict.fromkeys(("Int32", "Int64"), int),
    **dict.fromkeys(("Float32", "Float64"), float),
    "Bool": bool,
    "String": str,
    "Bytes": bytes,
    "UnixTimestamp": datetime,
}


@dataclass(frozen=True)
class FeatureParity:
    """Comparison of one feature online and offline: rows that were compared, and how many differ."""

    feature: str
    compared: int = about("Entities, or rows of an on-demand view, that were compared.")
    different: int = about("Number of those that differ.")
    expired: int = about("Number of those past the ttl at the watermark, where both sides must be missing.")
    ahead: int = about("Left out, because the served event is newer than the offline source.")
    largest_difference: float | None = about("Largest difference of numbers.")
    example: str = about("One of the differences.")


class Comparison:
    """Compares the feature views of a service, online with offline, on the same sample.

    Feast's online stores return event timestamps in whole seconds, so timestamps are compared in seconds.
    """

    def __init__(
        self, store: FeatureStore, *, sample: int, tolerance: float, seed: int, requests: "Callable[[], pd.DataFrame]"
    ):
        self.store, self.sample, self.tolerance, self.seed = store, sample, tolerance, seed
        self._requests = requests
        self._sampled: dict[str, pd.DataFrame] = {}

    def of_view(self, view: Any, types: dict[str, str]) -> list[FeatureParity]:
        """One row for each of the features `types` of a view; none if the view is not served online.

        Raises:
            FeatureError: the view was never materialized, or request data are missing.
        """
        if is_on_demand(view) and not is_stored(view):
            return self._of_on_demand_view(view, types)
        if not is_stored(view) and (getattr(view, "batch_source", None) is None or not view.online):
            return []
        keys, entities, pushed = join_keys(view), self._entities(view), _is_pushed(view)
        names, watermark = [f"{view.name}:{name}" for name in types], self._watermark(view)
        ttl = getattr(view, "ttl", None)  # a stored on-demand view has none
        served = served_values(self.store, entities.loc[:, keys], view, [*types])
        served_at = served[f"{next(iter(types))}__ts"].astype("float64").replace(0.0, math.nan)
        due, last = _seconds(entities["event_timestamp"]), _seconds(entities["last_event"])
        ahead = (served_at > due) | (served_at.notna() & due.isna())
        unknown = ahead & ~(last >= served_at) if pushed else ahead & False
        comparable = (due.notna() | served_at.notna()) & ~unknown
        wrong = (served_at < due) | (due.notna() & served_at.isna()) | (ahead & (not pushed))

        # A pushed event was the latest at its own timestamp; of several events in one second the last counts.
        pushed_at = pd.to_datetime(served_at, unit="s", utc=True).astype("datetime64[us, UTC]")
        pushed_at += _SECOND - MICROSECOND
        compared_at = entities["event_timestamp"].where(~(ahead & pushed), pushed_at)
        entity_rows = entities.loc[comparable, keys].assign(event_timestamp=compared_at[comparable])
        offline, online = self._offline(entity_rows, names, types), served[comparable]

        expired = comparable & ~wrong & (compared_at + ttl < watermark if ttl and watermark else False)
        late = entities.loc[expired, keys].assign(event_timestamp=watermark)
        stale_offline = self._offline(late, names, types)
        stale_online = served_values(self.store, late.loc[:, keys], view, [*types], at=watermark)
        rows = []
        for name, dtype in types.items():
            different, gap = _different(offline[name], online[name], dtype, self.tolerance)
            different |= wrong[comparable]
            unlike, _ = _different(stale_offline[name], stale_online[name], dtype, self.tolerance)
            different |= unlike.reindex(different.index, fill_value=False)
            example = ""
            if different.any():
                at = different.idxmax()
                sides = (stale_offline, stale_online) if unlike.get(at, False) else (offline, online)
                example = f"{_shown(entities.loc[at, keys])}: offline {sides[0][name][at]}, online {sides[1][name][at]}"
                if wrong[at]:
                    example += f" (from {_time_text(served_at[at])} instead of {_time_text(due[at])})"
            counts = (int(comparable.sum()), int(different.sum()), int(expired.sum()), int(unknown.sum()))
            rows.append(FeatureParity(f"{view.name}:{name}", *counts, gap, example))
        return rows

    def _of_on_demand_view(self, view: Any, types: dict[str, str]) -> list[FeatureParity]:
        """Both values at the earliest watermark of the view's sources, for rows whose inputs are not newer online."""
        used_names = dict.fromkeys(used.name for used in view.source_feature_view_projections.values())
        sources = [registry.feature_view(self.store, name) for name in used_names]
        watermark = min(filter(None, map(self._watermark, sources)), default=datetime.now(UTC))
        rows: Any = self._request_rows(view, sources)
        keys = [key for source in sources for key in join_keys(source)]
        needed = list(dict.fromkeys([*request_columns(view), *keys]))
        rows = rows.drop_duplicates(needed).reset_index(drop=True)
        ahead = pd.Series(False, index=rows.index)
        for source in sources:
            first = source.features[0].name
            served = served_values(self.store, rows.loc[:, join_keys(source)], source, [first])
            ahead |= served[f"{first}__ts"].astype("float64") > watermark.timestamp()
        names, requests = [f"{view.name}:{name}" for name in types], rows.loc[~ahead, needed]
        offline = self._offline(requests.assign(event_timestamp=watermark), names, types)
        # A server computes one row at a time, where code that looks at neighbouring rows gives other values.
        parts = [requests.iloc[[i]] for i in range(min(_ONE_BY_ONE, len(requests)))] + [requests.iloc[_ONE_BY_ONE:]]
        answers = [served_values(self.store, part, view, [*types], at=watermark) for part in parts]
        online = pd.concat([answer for answer in answers if len(answer)] or answers)

        takes = [f.name for used in view.source_feature_view_projections.values() for f in used.features]
        before = after = None
        if {*takes, *request_columns(view), *types} <= set(rows.columns):
            columns = rows[list(dict.fromkeys([*takes, *needed]))].astype(object)
            inputs = {name: [None if _is_missing(value) else value for value in columns[name]] for name in columns}
            after = pd.DataFrame(on_demand_values(view, inputs), index=rows.index)
            before, after = normalised(rows[[*types]], types), normalised(after.loc[:, [*types]], types)
        results = []
        for name, dtype in types.items():
            different, gap = _different(offline[name], online[name], dtype, self.tolerance)
            example = ""
            if different.any():
                at = different.idxmax()
                example = f"{_shown(rows.loc[at, needed])}: offline {offline[name][at]}, online {online[name][at]}"
            count = int(different.sum())
            if before is not None and after is not None:
                differs, larger = _different(before[name], after[name], dtype, self.tolerance, typed=True)
                gap = max((g for g in (gap, larger) if g is not None), default=None)
                count = int((differs | different.reindex(differs.index, fill_value=False)).sum())
                if differs.any() and not example:
                    at = differs.idxmax()
                    example = f"{_shown(rows.loc[at, needed])}: trained on {before[name][at]}, now {after[name][at]}"
            compared = len(requests) if after is None else len(rows)
            results.append(FeatureParity(f"{view.name}:{name}", compared, count, 0, int(ahead.sum()), gap, example))
        return results

    def _request_rows(self, view: Any, sources: list[Any]) -> Any:
        """A sample of request data with join keys added; of entities if the view takes no request data."""
        requested, rows = request_columns(view), None
        if requested:
            rows = self._requests()
            lacking = [name for name in requested if name not in rows.columns]
            if lacking:
                raise FeatureError(
                    f"on-demand feature view {view.name!r} takes {', '.join(lacking)} from the request, and "
                    f"the request data have {', '.join(map(str, rows.columns))}. Give request_data= a frame with them."
                )
            rows = rows.sample(min(self.sample, len(rows)), random_state=self.seed).reset_index(drop=True)
        for source in sorted(sources, key=lambda source: -len(join_keys(source))):
            entities = self._entities(source)
            new = [key for key in join_keys(source) if rows is None or key not in rows.columns]
            if rows is None:
                rows = entities[new]
            elif new and len(entities):
                places = [i % len(entities) for i in range(len(rows))]
                rows = rows.assign(**{key: entities[key].iloc[places].to_numpy() for key in new})
        assert rows is not None  # an on-demand view has at least one source
        return rows

    def _entities(self, view: Any) -> "pd.DataFrame":
        if view.name not in self._sampled:
            windows, pushed = loaded_windows(self.store, view), _is_pushed(view)
            if not windows and not pushed:
                raise FeatureError(
                    f"feature view {view.name!r} was never materialized, so nothing is online. Materialize its asset."
                )
            if is_stored(view):
                self._sampled[view.name] = self._stored_entities(view, windows)
                return self._sampled[view.name]
            until = datetime.now(UTC) if pushed else None
            self._sampled[view.name] = latest_events(
                self.store, view, windows, sample=self.sample, seed=self.seed, until=until
            )
        return self._sampled[view.name]

    def _stored_entities(self, view: Any, windows: list[Window]) -> "pd.DataFrame":
        """A sample of a stored view's entities as :func:`latest_events` gives it: newest, oldest and random ones."""
        entities = latest_entities(self.store, view, windows)
        quarter = -(-self.sample // 4)
        by_time = entities.sort_values(["event_timestamp", *join_keys(view)], ascending=False)
        parts = [by_time.head(quarter), by_time.tail(quarter), entities.sample(frac=1.0, random_state=self.seed)]
        sample = pd.concat(parts).drop_duplicates(join_keys(view)).head(self.sample).reset_index(drop=True)
        return sample.assign(last_event=sample["event_timestamp"])

    def _watermark(self, view: Any) -> datetime | None:
        return max((window.end - MICROSECOND for window in loaded_windows(self.store, view)), default=None)

    def _offline(self, entity_rows: "pd.DataFrame", names: list[str], types: dict[str, str]) -> "pd.DataFrame":
        return point_in_time(self.store, entity_rows.reset_index(drop=True), names, types).set_index(entity_rows.index)


def _different(
    offline: Any, online: Any, dtype: str, tolerance: float, *, typed: bool = False
) -> "tuple[pd.Series, float | None]":
    """The rows in which two columns of a feature differ, and the largest difference of numbers; missing equals missing.

    Unless `typed`, `online` holds values as Feast read them, and a value of another type than the feature's differs.
    """
    kind = _KINDS.get(dtype)
    right = online.map(lambda v: typed or kind is None or v is None or type(v) is kind or _is_missing(v)).astype(bool)
    values = normalised(pd.DataFrame({"value": online.where(right, None)}), {"value": dtype})["value"]
    triples = zip(offline, values, right, strict=True)
    different = [not (is_right and _alike(a, b, tolerance)) for a, b, is_right in triples]
    gaps = (offline - values).abs().dropna() if offline.dtype == "float64" else ()
    return pd.Series(different, index=offline.index, dtype=bool), float(max(gaps)) if len(gaps) else None


def _alike(offline: Any, online: Any, tolerance: float) -> bool:
    """True if two values are equal, also inside lists and mappings."""
    a, b = (value.tolist() if hasattr(value, "tolist") else value for value in (offline, online))
    if _is_missing(a) or _is_missing(b):
        return _is_missing(a) and _is_missing(b)
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        a, b = dict(a), dict(b)  # a map in Arrow is a list of pairs
        return a.keys() == b.keys() and all(_alike(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_alike(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float | int):
        return a == b or abs(a - b) <= max(tolerance * abs(a), 1e-12)
    if isinstance(a, datetime) and isinstance(b, datetime):  # Feast serves whole seconds
        return utc(a).replace(microsecond=0) == utc(b).replace(microsecond=0)
    return a == b


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | datetime) and value != value)  # NaN, and pandas' NaT


def _is_pushed(view: Any) -> bool:
    return getattr(view, "stream_source", None) is not None


def _seconds(times: Any) -> "pd.Series":
    """Whole seconds since 1970, and NaN for a missing time."""
    return (times.astype("int64").astype("float64") // 1e6).where(times.notna())


def _time_text(seconds: Any) -> str:
    return "nothing" if math.isnan(seconds) else datetime.fromtimestamp(seconds, UTC).isoformat()


def _shown(row: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in row.items()) or "the only row"
