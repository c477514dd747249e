"""Loads a window of a feature view into the online store, and says what was in the window."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from dagster_mlops._extras import extra
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.retrieval import join_keys

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureStore

_TICK = timedelta(microseconds=1)


@dataclass(frozen=True)
class Window:
    """A half-open span of event time, [start, end), in UTC."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class WindowFacts:
    """What the offline source holds in a window of a feature view."""

    window: Window
    rows: int
    null_shares: dict[str, float]
    last_event: datetime | None
    content_hash: str


def materialize(store: "FeatureStore", view: Any, window: Window) -> Window:
    """Load `window` into the online store and return the window that was really read.

    Feast's SQLite and Postgres online stores let an older event overwrite a newer one. So a window that ends before
    what is already online is read up to there: the latest event of each key wins whatever order windows come in, and
    no moment shows an older value. Callers hold the view's lock, because two processes could otherwise each miss the
    other's window.
    """
    done = materialized_until(view)
    read = Window(window.start, max(window.end, done) if done else window.end)
    # Feast reads both ends of an interval; events at `end` belong to the next window.
    store.materialize(read.start, read.end - _TICK, feature_views=[view.name])
    return read


def materialized_until(view: Any) -> datetime | None:
    """The end of the latest materialized window, as the registry has it."""
    ends = [_utc(end) + _TICK for _, end in view.materialization_intervals]
    return max(ends, default=None)


def materialized_windows(view: Any) -> list[Window]:
    """Every materialized window of a view, as the registry has it."""
    return [Window(_utc(start), _utc(end) + _TICK) for start, end in view.materialization_intervals]


def whole_window(store: "FeatureStore", view: Any) -> Window:
    """From the first to the last event of the view's source that has happened by now.

    Raises:
        FeatureError: the source has no events.
    """
    times = read_source(store, view, None, features=[], keys=[])[view.batch_source.timestamp_field]
    times = times.loc[times <= datetime.now(timezone.utc)]
    if times.empty:
        raise FeatureError(
            f"the source of feature view {view.name!r} has no events yet, so there is nothing to materialize. "
            "Materialize the assets that write it first."
        )
    return Window(times.min().to_pydatetime(), times.max().to_pydatetime() + _TICK)


def read_source(
    store: "FeatureStore", view: Any, window: Window | None, *, features: Sequence[str], keys: Sequence[str]
) -> "pd.DataFrame":
    """The rows of a view's offline source, with Feast's own names and the timestamp in UTC.

    Raises:
        FeatureError: the source cannot be read.
    """
    source = view.batch_source
    raw = {mapped: name for name, mapped in source.field_mapping.items()}
    offline = extra("feast.infra.offline_stores.offline_utils").get_offline_store_from_config(
        store.config.offline_store
    )
    span = {"start_date": window.start, "end_date": window.end - _TICK} if window else {}
    try:
        job = offline.pull_all_from_table_or_query(
            config=store.config,
            data_source=source,
            join_key_columns=[raw.get(name, name) for name in keys],
            feature_name_columns=[raw.get(name, name) for name in features],
            timestamp_field=source.timestamp_field,
            **span,
        )
        frame = job.to_df().rename(columns=source.field_mapping)
    except Exception as error:
        raise FeatureError(
            f"feature view {view.name!r} cannot read its source {getattr(source, 'path', '') or source.name}: {error}. "
            "Materialize what writes it first; a FileSource wants an absolute file or folder (no glob) and timestamps "
            "in microseconds."
        ) from error
    time = source.timestamp_field
    return frame.assign(**{time: extra("pandas", extra="feast").to_datetime(frame[time], utc=True)})


def describe_windows(store: "FeatureStore", view: Any, windows: Sequence[Window]) -> list[WindowFacts]:
    """What the source holds in each of `windows`, which follow one another; read in one go."""
    features = [feature.name for feature in view.features]
    whole = Window(windows[0].start, windows[-1].end)
    frame = read_source(store, view, whole, features=features, keys=join_keys(view))
    time = frame[view.batch_source.timestamp_field]
    facts: list[WindowFacts] = []
    for window in windows:
        part = frame.loc[(time >= window.start) & (time < window.end)]
        last = time[part.index].max() if len(part) else None
        facts.append(
            WindowFacts(
                window=window,
                rows=len(part),
                null_shares={
                    name: float(part[name].isna().to_numpy().mean()) if len(part) else 0.0 for name in features
                },
                last_event=last.to_pydatetime() if last is not None else None,
                content_hash=content_hash(part),
            )
        )
    return facts


def content_hash(frame: "pd.DataFrame") -> str:
    """A hash of a frame's rows, whatever their order and index."""
    pd = extra("pandas", extra="feast")
    nested = [
        name
        for name in frame.select_dtypes("object")
        if not all(pd.api.types.is_hashable(value) for value in frame[name])
    ]
    plain = frame.assign(**{name: frame[name].map(str) for name in nested})
    rows = pd.util.hash_pandas_object(plain, index=False).sort_values().to_numpy()
    return hashlib.sha256("|".join(map(str, frame.columns)).encode() + rows.tobytes()).hexdigest()


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)
