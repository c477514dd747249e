"""Labels that arrive later: each prediction gets the one that was known for it, by a rule."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_mlops.errors import MonitoringError
from dagster_mlops.serving import join_labels

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(hours: int) -> datetime:
    return START + timedelta(hours=hours)


def predictions(*rows) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=pd.Index(["request_id", "flight", "timestamp"]))
    return frame.assign(timestamp=pd.to_datetime(frame["timestamp"], utc=True))


def labels(*rows, on="flight") -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=pd.Index([on, "late", "landed"]))
    return frame.assign(landed=pd.to_datetime(frame["landed"], utc=True))


EVENTS = st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 6)), max_size=12)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    asked=EVENTS,
    known=st.dictionaries(st.tuples(st.sampled_from("xyz"), st.integers(0, 6)), st.sampled_from([True, False, None])),
    as_of=st.integers(0, 6),
    within=st.none() | st.integers(1, 6),
    take=st.sampled_from(["first", "last"]),
)
def test_each_prediction_gets_the_label_that_the_rule_says(asked, known, as_of, within, take):
    frame = predictions(*(("r", flight, at(hour)) for flight, hour in asked)).set_index(
        pd.Index(range(7, 7 + len(asked)))
    )
    events = labels(*((flight, late, at(hour)) for (flight, hour), late in known.items()))
    wait = None if within is None else timedelta(hours=within)
    answer = join_labels(
        frame, events, label="late", time="landed", key="flight", as_of=at(as_of), within=wait, take=take
    )
    assert answer[frame.columns].equals(frame)
    for (flight, hour), late, landed in zip(asked, answer["late"], answer["landed"], strict=True):
        deadline = min(as_of, hour + (within or 99))
        times = [
            time
            for (name, time), value in known.items()
            if name == flight and value is not None and hour < time <= deadline
        ]
        if times:
            time = min(times) if take == "first" else max(times)
            assert (late, landed) == (known[flight, time], at(time))
        else:
            assert pd.isna(late) and pd.isna(landed)


def test_by_request_id_a_correction_replaces_a_label_from_its_time_on():
    frame = predictions(("r1", "x", at(0)), ("r2", "x", at(0)))
    events = labels(("r1", True, at(1)), ("r1", False, at(5)), ("r3", True, at(1)), on="request_id")
    for hour, late in ((4, True), (5, False)):
        answer: Any = join_labels(frame, events, label="late", time="landed", as_of=at(hour))
        assert answer["late"][0] is late and pd.isna(answer["late"][1])


def test_what_would_be_a_guess_is_refused():
    frame, events = predictions(("r1", "x", at(0))), labels(("x", True, at(1)))
    join: Any = {"label": "late", "time": "landed", "key": "flight"}
    with pytest.raises(MonitoringError, match=r"1 label.s. differ from another of the same 'flight' and 'landed'"):
        join_labels(frame, pd.concat([events, labels(("x", False, at(1)))]), **join)
    with pytest.raises(MonitoringError, match="must be a time with a time zone"):
        join_labels(frame, events.assign(landed=events["landed"].dt.tz_localize(None)), **join)
    with pytest.raises(MonitoringError, match="the labels have no column 'tail'"):
        join_labels(frame, events, **{**join, "label": "tail"})
    with pytest.raises(MonitoringError, match=r"predictions have no column 'tail'[^\n]*\n.*send another key as the id"):
        join_labels(frame, events, **{**join, "key": "tail"})
    with pytest.raises(MonitoringError, match=r"have columns \['late'\] already"):
        join_labels(frame.assign(late=True), events, **join)
    with pytest.raises(MonitoringError, match="has no time zone"):
        join_labels(frame, events, **join, as_of=datetime(2026, 1, 1))
