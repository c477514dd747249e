"""Detection of change in windows of counts: the asked rate, faults of one column, and state that survives as JSON."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.detection import Detector, Recent
from dagster_mlops.monitoring.detection.recent import all_before
from dagster_mlops.monitoring.detection.threshold import Peaks, threshold_for
from dagster_mlops.monitoring.windows import Profile, Window, cut

START = datetime(2024, 1, 1, tzinfo=UTC)


def traffic(days: int, *, seed: int, start: datetime = START, per_hour: int = 40) -> pd.DataFrame:
    """Rows of a service with a daily rhythm and a slowly varying input."""
    rng = np.random.default_rng(seed)
    hours = rng.poisson(per_hour, days * 24)
    hour = np.repeat(np.arange(days * 24), hours)
    weather = np.cumsum(rng.normal(0, 0.15, days * 24)) * 0.1 + rng.normal(0, 0.3, days * 24)
    amount = rng.gamma(2, 10 + 5 * np.sin(hour % 24 / 24 * 2 * np.pi))
    return pd.DataFrame(
        {
            "time": pd.Timestamp(start) + pd.to_timedelta((hour + rng.random(len(hour))) * 3600, unit="s"),
            "weather": weather[hour] + rng.normal(0, 0.5, len(hour)),
            "amount": amount,
            "kind": rng.choice(["card", "cash", "transfer"], len(hour), p=[0.6, 0.3, 0.1]),
            "always": 1.0,
        }
    ).sort_values("time", ignore_index=True)


HISTORY = traffic(70, seed=1)
PROFILE = Profile.learn(HISTORY, columns=["weather", "amount", "kind", "always"])
CUT = cut(HISTORY, PROFILE, times="time", rows=500)
DETECTOR = Detector.calibrate(CUT, profile=PROFILE)
LATER = traffic(7, seed=2, start=START + timedelta(days=70))


def judged(frame: pd.DataFrame):
    windows = cut(LATER, PROFILE, times="time", rows=500).windows
    recent = Recent()
    for window in windows:
        recent = recent.after(window)
    [window] = cut(frame.iloc[:500].assign(time=LAST["time"].to_numpy()), PROFILE, times="time", rows=500).windows
    return DETECTOR.judge(window, recent)


LAST = LATER.iloc[-500:]
FAULTS = {
    "missing": lambda f: f.assign(amount=np.nan),
    "a tenth missing": lambda f: f.assign(amount=f["amount"].where(np.arange(500) % 10 > 0)),
    "gone": lambda f: f.drop(columns="amount"),
    "infinite": lambda f: f.assign(amount=np.inf),
    "text": lambda f: f.assign(amount=f["amount"].map(str)),
    "default": lambda f: f.assign(amount=np.where(np.arange(500) % 4, f["amount"], 0.0)),
    "unit": lambda f: f.assign(amount=f["amount"] / 100),
    "new category": lambda f: f.assign(kind=np.where(np.arange(500) % 10, f["kind"], "crypto")),
    "constant changes": lambda f: f.assign(always=2.0),
    "swapped": lambda f: f.assign(weather=f["amount"], amount=f["weather"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_broken_column_is_an_alarm_in_its_first_window_with_and_without_an_outlier(fault):
    assert not judged(LAST).alarm
    for broken in (FAULTS[fault](LAST), FAULTS[fault](LAST.assign(weather=[1e9, *LAST["weather"][1:]]))):
        verdict = judged(broken)
        column = {"new category": "kind", "constant changes": "always"}.get(fault, "amount")
        assert verdict.alarm and column in [entry.column for entry in verdict.alarming]


def test_a_step_of_a_slowly_varying_column_is_seen_against_the_days_before():
    verdict = judged(LAST.assign(weather=LAST["weather"] + 2))
    assert ("weather", "mean") in [(entry.column, entry.what) for entry in verdict.alarming]


def test_alarms_come_about_as_often_as_asked():
    """Seven times 40 days: between a third and thrice of what was asked, so that chance does not fail it."""
    alarms = 0
    for seed in range(3, 10):  # no longer, because the weather walks out of what the history holds
        rows = traffic(40, seed=seed, start=START + timedelta(days=70))
        alarms += sum(
            verdict.alarm for verdict in DETECTOR.judge_all(cut(rows, PROFILE, times="time", rows=500).windows)
        )
    assert 3 <= alarms <= 28, alarms


def test_rates_that_the_history_is_too_short_to_show_are_extrapolated():
    rare = Detector.calibrate(CUT, profile=PROFILE, alarms=1, per=timedelta(days=3650))
    assert rare.threshold > DETECTOR.threshold
    scores = np.random.default_rng(0).exponential(size=20_000)
    level, _ = threshold_for(Peaks(np.arange(20_000) * 2.0, scores, 1.0), expected=0.1)
    assert abs(level - np.log(20_000 / 0.1)) < 1.5


def test_a_history_that_is_too_short_is_refused_and_a_short_one_widens_the_threshold():
    def calibrated(days):
        short = HISTORY[HISTORY["time"] < START + timedelta(days=days)]
        return Detector.calibrate(cut(short, PROFILE, times="time", rows=500), profile=PROFILE)

    with pytest.raises(MonitoringError, match="Take a longer history"):
        calibrated(5)
    assert "widened" in calibrated(28).promise and "widened" not in DETECTOR.promise


@pytest.mark.parametrize(
    "wrong",
    [{"alarms": 0}, {"alarms": float("nan")}, {"alarms": 40}, {"per": timedelta(0)}, {"minimum_effect": 1}],
    ids=str,
)
def test_a_senseless_rate_is_refused(wrong):
    with pytest.raises(MonitoringError):
        Detector.calibrate(CUT, profile=PROFILE, **wrong)


def test_few_rows_are_undecided_unless_they_are_broken():
    few = LATER[:6]
    assert DETECTOR.judge(Window(START, START, PROFILE.count(few, "time"))).undecided
    assert DETECTOR.judge(Window(START, START + timedelta(hours=1), PROFILE.empty())).undecided
    many = DETECTOR.judge(Window(START, START, PROFILE.count(LATER[:100].drop(columns="amount"), "time")))
    assert many.alarm and many.columns[0].column == "amount"


def test_a_small_change_is_no_alarm_below_the_minimum_effect():
    patient = Detector.calibrate(CUT, profile=PROFILE, minimum_effect=0.4)
    window = Window(START, START, PROFILE.count(LAST.assign(amount=LAST["amount"] * 1.5), "time"))
    assert DETECTOR.judge(window).alarm and not patient.judge(window).alarm
    broken = Window(
        START, START, PROFILE.count(LAST.assign(amount=LAST["amount"].where(np.arange(500) % 10 > 0)), "time")
    )
    assert patient.judge(broken).alarm


def test_detector_and_recent_windows_are_kept_as_json():
    again = Detector.from_dict(json.loads(json.dumps(DETECTOR.to_dict())))
    recent = Recent()
    for window in cut(LATER, PROFILE, times="time", rows=100).windows:
        kept = Recent.from_dict(json.loads(json.dumps(recent.to_dict())))
        assert kept.windows == recent.windows and len(recent.windows) <= 14
        assert again.judge(window, kept).to_dict() == DETECTOR.judge(window, recent).to_dict()
        recent = recent.after(window)
    assert len(json.dumps(DETECTOR.to_dict())) < 200_000


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)), min_size=1, max_size=30))
def test_the_days_before_are_the_same_live_and_in_calibration(steps):
    windows, time = [], datetime(2024, 1, 1, tzinfo=UTC)
    for hours, rows in steps:
        windows.append(Window(time, time + timedelta(hours=1), PROFILE.count(LATER[:rows])))
        time += timedelta(hours=hours)
    whole = all_before(windows, np.array([window.counts.bins for window in windows]))
    recent = Recent()
    for window, expected in zip(windows, whole, strict=True):
        before = recent.before(window)
        assert (before.bins.tolist() if before else [0] * PROFILE.size) == expected.tolist()
        recent = recent.after(window)


def test_a_window_of_another_profile_is_refused():
    other = Profile.learn(HISTORY[["amount"]])
    with pytest.raises(MonitoringError, match="another profile"):
        DETECTOR.judge(Window(START, START, other.count(LATER)))


def test_all_windows_at_once_are_judged_like_one_by_one_also_after_an_incident():
    rows = LATER.copy()
    rows.loc[rows.index[2000:2300], "weather"] += 60
    windows, recent = cut(rows, PROFILE, times="time", rows=100).windows, Recent()
    verdicts = DETECTOR.judge_all(windows)
    for window, verdict in zip(windows, verdicts, strict=True):
        alone = DETECTOR.judge(window, recent)
        assert (alone.alarm, alone.score) == (verdict.alarm, pytest.approx(verdict.score))
        recent = recent if verdict.alarm else recent.after(window)
    assert [verdict.alarm for verdict in verdicts[18:30]] == [False] * 2 + [True] * 3 + [False] * 7


def test_a_column_that_was_broken_in_the_history_is_an_alarm_when_it_breaks_again():
    broken = HISTORY.assign(amount=HISTORY["amount"].where((HISTORY.index < 9000) | (HISTORY.index > 10_000)))
    profile = Profile.learn(broken, columns=["weather", "amount", "kind"])
    detector = Detector.calibrate(cut(broken, profile, times="time", rows=200), profile=profile)
    for fault in (np.nan, np.inf, -500.0):
        [window] = cut(LAST[:200].assign(amount=fault), profile, times="time", rows=200).windows
        assert "amount" in [entry.column for entry in detector.judge(window).alarming]


def test_a_history_in_which_nothing_changes_is_not_an_alarm_itself_and_a_change_of_it_is():
    constant = HISTORY.assign(kind="card")[["time", "kind", "always"]]
    profile = Profile.learn(constant, columns=["kind", "always"])
    detector = Detector.calibrate(cut(constant, profile, times="time", rows=500), profile=profile)
    later = LATER.assign(kind="card")
    same, other = (
        cut(frame, profile, times="time", rows=500).windows for frame in (later, later.assign(always=later.index % 9))
    )
    assert not any(judgement.alarm for judgement in detector.judge_all(same))
    assert detector.judge(other[0]).alarm


def test_one_wrong_date_changes_no_promise_and_an_impossible_one_is_named():
    first = HISTORY["time"].where(HISTORY.index > 0, pd.Timestamp("1970-01-01", tz="UTC"))
    windows = cut(HISTORY.assign(time=first), PROFILE, times="time", rows=500)
    detector = Detector.calibrate(windows, profile=PROFILE)
    assert "windows of 71 days in 11 calendar weeks: 2.4 expected" in detector.promise
    assert abs(detector.threshold - DETECTOR.threshold) < 0.2
    centuries = HISTORY["time"].dt.tz_localize(None).astype(object).where(HISTORY.index > 0, datetime(9999, 12, 31))
    with pytest.raises(MonitoringError, match="1 rows have a time before 1900 or after 2200 in 'time'"):
        cut(HISTORY.assign(time=centuries), PROFILE, times="time", rows=500)


def test_a_table_without_a_column_to_watch_or_with_numbers_for_times_is_refused_with_the_fix():
    with pytest.raises(MonitoringError, match="no column to watch"):
        Detector.calibrate(cut(HISTORY, Profile(()), times="time", rows=500), profile=Profile(()))
    seconds = HISTORY.assign(time=HISTORY["time"].astype("int64") // 10**9)
    with pytest.raises(MonitoringError, match="to_datetime"):
        cut(seconds, PROFILE, times="time", rows=500)
