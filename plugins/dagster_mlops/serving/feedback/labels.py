"""Labels that arrive later, joined to the predictions of a log as they were known at a time."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from dagster_mlops.core.arrays import pd
from dagster_mlops.errors import MonitoringError

_ROW, _DEADLINE = "__row", "__deadline"
_NUMBERS = {"integer", "floating", "mixed-integer-float", "decimal", "boolean"}  # as pandas names kinds of values


def join_labels(
    predictions: "pd.DataFrame",
    labels: "pd.DataFrame",
    *,
    label: str,
    time: str,
    key: str = "request_id",
    as_of: datetime | None = None,
    within: timedelta | None = None,
    take: Literal["first", "last"] = "last",
) -> "pd.DataFrame":
    """The predictions, each with the label that was known for it, and the time since when.

        frame, cursor = PredictionLog.read_after("state/serving/predictions", cursor)
        frame = join_labels(frame, arrivals, label="late", time="landed_at", key="flight_id", within=timedelta(days=2))

    No row is added, left out or moved. A prediction without a label has a missing value in both columns. A label
    counts for a prediction if it became known after it, as one known before says nothing of the future; not later than
    `within` after it, so that old and new predictions have had the same time to get one; and not later than `as_of`, so
    that a report of last month can be repeated. Missing labels are not labels.

    Args:
        predictions: Rows of :meth:`PredictionLog.read`, with ``timestamp``.
        labels: Rows with the columns `key`, `label` and `time`.
        label: Column of the labels.
        time: Column of the times at which they became known, with a time zone.
        key: Column that both have: ``request_id``, or the key of an entity, which may have labels again and again.
        as_of: Time of what is known; now by default.
        within: Longest time from a prediction to its label.
        take: The label that counts where several do: the last one, which corrects those before, or the first.

    Raises:
        MonitoringError: a column is missing or has no time zone, two labels of one key and time differ, or a key is
            text on one side and a number on the other.
    """
    _check(predictions, [key, "timestamp"], "timestamp", "the predictions")
    _check(labels, [key, label, time], time, "the labels")
    if clash := {label, time} & set(predictions.columns):
        raise MonitoringError(f"the predictions have columns {sorted(clash)} already. Rename those of the labels.")
    kinds = [pd.api.types.infer_dtype(frame[key].dropna()) for frame in (predictions, labels)]
    if "string" in kinds and set(kinds) & _NUMBERS:
        raise MonitoringError(
            f"'{key}' is {kinds[0]} in the predictions and {kinds[1]} in the labels, so that none would be found. Cast "
            "one of them."
        )
    events: Any = labels[[key, label, time]].dropna().drop_duplicates()
    events[time] = events[time].dt.tz_convert("UTC").dt.as_unit("ns")
    if (repeats := events.duplicated([key, time])).any():
        raise MonitoringError(
            f"{int(repeats.sum())} label(s) differ from another of the same '{key}' and '{time}', so neither is the "
            "later one. Keep one of them."
        )
    known_until = pd.Timestamp(as_of or datetime.now(UTC))
    if known_until.tzinfo is None:
        raise MonitoringError(f"as_of={as_of} has no time zone.")
    left: Any = predictions[[key, "timestamp"]].reset_index(drop=True)
    left[_ROW] = left.index
    left["timestamp"] = left["timestamp"].dt.tz_convert("UTC").dt.as_unit("ns")
    left = left.dropna()
    left[_DEADLINE] = (
        (left["timestamp"] + within).clip(upper=known_until.tz_convert("UTC"))
        if within
        else known_until.tz_convert("UTC")
    )
    left[_DEADLINE] = left[_DEADLINE].dt.as_unit("ns")
    if left.empty or events.empty:
        pairs = pd.DataFrame({_ROW: [], label: [], time: []})
    else:
        order, direction = ("timestamp", "forward") if take == "first" else (_DEADLINE, "backward")
        pairs = pd.merge_asof(
            left.sort_values(order),
            events.sort_values(time),
            left_on=order,
            right_on=time,
            by=key,
            direction=direction,
            allow_exact_matches=take == "last",
        )
        pairs = pairs[(pairs[time] > pairs["timestamp"]) & (pairs[time] <= pairs[_DEADLINE])]
    pairs = pairs.set_index(_ROW)[[label, time]].reindex(range(len(predictions)))
    pairs.index = predictions.index
    return pd.concat([predictions, pairs], axis=1)


def _check(frame: "pd.DataFrame", columns: list[str], time: str, what: str) -> None:
    if missing := [name for name in columns if name not in frame.columns]:
        hint = (
            "\nA log has features and request_id: let clients send another key as the id."
            if time == "timestamp"
            else ""
        )
        raise MonitoringError(
            f"{what} have no column {', '.join(map(repr, missing))}, but {list(frame.columns)}.{hint}"
        )
    if len(frame) and not isinstance(frame[time].dtype, pd.DatetimeTZDtype):
        raise MonitoringError(f"'{time}' of {what} is {frame[time].dtype}, and must be a time with a time zone.")
