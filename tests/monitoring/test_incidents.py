"""Windows that belong together are one incident, and its end is told once."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_mlops.monitoring.live.incidents import Course, Incident, Persistence, WindowScore

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DEFAULT = Persistence()


def course_of(scores, rule=DEFAULT, step=HOUR):
    """The states at the ends of windows with these scores and the threshold 4, and the incidents' ids."""
    course, states, incidents = Course(), [], []
    for number, score in enumerate(scores):
        window = WindowScore(START + number * step, START + (number + 1) * step, score, 4.0, ("temp",))
        state, course = course.after(window, rule)
        states.append(state)
        incidents.append(course.incident.id if course.incident else "")
    return states, incidents


def test_one_window_above_the_threshold_is_an_incident_until_three_are_calm():
    states, incidents = course_of([1, 9, 1, 1, 1, 1])
    assert states == ["ok", "detected", "detected", "detected", "recovered", "ok"]
    assert set(incidents[1:]) == {(START + 2 * HOUR).isoformat()}


def test_two_of_three_windows_are_needed_where_that_was_asked():
    rule = Persistence(needed=2, of=3)
    assert course_of([9, 1, 1, 9, 1, 9], rule)[0] == ["suspected", "ok", "ok", "suspected", "ok", "detected"]


def test_a_window_just_below_the_threshold_does_not_end_an_incident():
    states, _ = course_of([9, 3.9, 3.9, 3.9, 3.9, 1, 1, 1])
    assert states[-3:] == ["detected", "detected", "recovered"] and set(states[:-1]) == {"detected"}


def test_what_comes_back_within_a_day_is_the_same_incident_and_after_it_another():
    _, soon = course_of([9, 1, 1, 1, 1, 9])
    assert soon[0] == soon[-1]
    _, later = course_of([9, 1, 1, 1, *[1] * 24, 9])
    assert later[-1] not in ("", later[0])


def test_a_score_that_is_not_a_number_is_above_every_threshold():
    assert course_of([float("nan")])[0] == ["detected"]


@given(st.lists(st.floats(0, 10), max_size=60), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_every_incident_begins_above_the_threshold_and_recovers_once(scores, needed, of, calm):
    rule = Persistence(needed=min(needed, of), of=of, calm=calm, quiet=timedelta(hours=5))
    states, _ = course_of(scores, rule)
    is_open = False
    for state, score in zip(states, scores, strict=True):
        if state == "detected" and not is_open:
            assert score >= 4
            is_open = True
        elif state == "recovered":
            assert is_open and score < 4
            is_open = False
        else:
            assert is_open == (state == "detected")


def test_an_incident_survives_its_stored_form():
    incident = Incident("a", START, START + HOUR, 3, 7.5, ("temp", "humid"), 2, True)
    assert Incident.from_dict(incident.to_dict()) == incident


@pytest.mark.parametrize(
    "rule",
    [
        Persistence(needed=0), Persistence(needed=3, of=2), Persistence(of=101), Persistence(calm=0),
        Persistence(hysteresis=0), Persistence(hysteresis=1.1), Persistence(quiet=timedelta(-1)),
    ],
    ids=str,
)  # fmt: skip
def test_persistence_that_could_not_work_is_refused(rule):
    from dagster_mlops.core.bounds import refuse_useless

    with pytest.raises(dg.DagsterInvalidDefinitionError):
        refuse_useless("a watch", rule.faults())
