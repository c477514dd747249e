"""A detector tried on its own history: the asked rate against the measured one, its alarms, and injected incidents."""

import math
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from typing import Any

from dagster_mlops.core.arrays import np, pd
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.backtest.injection import Injection
from dagster_mlops.monitoring.backtest.result import Alarm, Backtest, Catch, Rate
from dagster_mlops.monitoring.detection import Detector, Judgement, Recent
from dagster_mlops.monitoring.detection.detector import QUIET, covered_days
from dagster_mlops.monitoring.windows import History, Profile, Window, cut
from dagster_mlops.monitoring.windows.counts import week_of
from dagster_mlops.monitoring.windows.readings import times_of

_MONTH = timedelta(days=30)


def backtest(
    frame: Any,
    *,
    time: str,
    columns: Sequence[str] | None = None,
    categories: Collection[str] = (),
    rows: int | None = None,
    every: timedelta | None = None,
    alarms: float = 1.0,
    per: timedelta = _MONTH,
    minimum_effect: float = 0.0,
    zone: str = "UTC",
    last: timedelta = timedelta(days=90),
    splits: int = 5,
    injections: Sequence[Injection] = (),
    tell: Callable[[str], object] = lambda text: None,
) -> Backtest:
    """Try a detector on a history, by the code that judges live windows.

    The rate is measured on random halves of the weeks, each judged by a detector that was calibrated on the other one:
    nothing changes between them but by chance. The alarms are those of the last days, judged by a detector that knows
    what came before only.

    Args:
        frame: The history, a pandas frame.
        time: Its time column.
        columns: Columns to watch; all others by default.
        categories: Columns of numbers that stand for categories.
        rows: Rows of a window.
        every: Length of a window.
        alarms: False alarms that are accepted for the whole model …
        per: … in this time.
        minimum_effect: Smallest share of rows that has to be distributed differently.
        zone: Time zone of the users.
        last: Length of the judged period at the end of the history; at most half of the history.
        splits: Number of random splits; 0 measures no rate.
        injections: Incidents.
        tell: Is called with a line of progress from time to time.

    Raises:
        MonitoringError: the history is too short, or an incident lies outside of the judged period.
    """
    if time not in frame:
        raise MonitoringError(
            f"The history has no column {time!r}. Its columns are: {', '.join(map(str, frame))[:500]}."
        )
    watched = list(columns or [name for name in frame if name != time])
    options = {"alarms": alarms, "per": per, "minimum_effect": minimum_effect}
    if frame.empty:
        raise MonitoringError("The history has no rows.")
    if pd.api.types.is_numeric_dtype(frame[time]):
        raise MonitoringError(
            f"{time!r} holds numbers: make times of them, such as by pandas.to_datetime(…, unit='s')."
        )
    clock = pd.to_datetime(frame[time], utc=True, errors="coerce")
    if clock.isna().any():
        raise MonitoringError(f"{int(clock.isna().sum()):,} rows have no time in {time!r}. Drop them.")
    frame = frame.assign(**{time: clock})
    since = max(clock.max() - pd.Timedelta(last), clock.min() + (clock.max() - clock.min()) / 2)

    def learn(history: Any) -> Profile:
        return Profile.learn(history, watched, categories=categories, zone=zone)

    tell(f"Calibrating on {clock.min():%Y-%m-%d} to {since:%Y-%m-%d} …")
    earlier, later = frame[clock < since], frame[clock >= since]
    profile = learn(earlier)
    past = cut(earlier, profile, times=time, rows=rows, every=every)
    detector = Detector.calibrate(past, profile=profile, **options)
    windows = cut(later, profile, times=time, rows=rows, every=every).windows
    if not windows:
        raise MonitoringError("The judged period holds no whole window. Take smaller windows, or a longer history.")
    verdicts = _judge(detector, past, windows)
    catches = []
    for injection in injections:
        tell(f"Injecting {injection.text} …")
        if not since <= injection.start < clock.max():
            raise MonitoringError(
                f"{injection.text!r} begins outside of the judged period, {since:%Y-%m-%d} to {clock.max():%Y-%m-%d}. "
                "Move it, or make the period longer."
            )
        changed = pd.concat([later.drop(injection.apply(later, time).index), injection.apply(later, time)])
        catches.append(_catch(injection, detector, past, windows, verdicts, changed.sort_index(), time))
    rate = _rate(frame, time, learn, options, splits, rows, every, tell) if splits else None
    return Backtest(
        promise=detector.promise,
        rate=rate,
        since=since.to_pydatetime(),
        until=windows[-1].end,
        alarms=tuple(_alarms(windows, verdicts)),
        catches=tuple(catches),
        times=tuple(window.end for window in windows),
        scores=tuple(verdict.score for verdict in verdicts),
        threshold=detector.threshold,
    )


def _judge(detector: Detector, past: History, windows: Sequence[Window]) -> list[Judgement]:
    recent = past.windows[-50:]
    return detector.judge_all([*recent, *windows])[len(recent) :]


def _alarms(windows: Sequence[Window], verdicts: Sequence[Judgement]) -> list[Alarm]:
    groups: list[list[tuple[Window, Judgement]]] = []
    for window, verdict in zip(windows, verdicts, strict=True):
        if verdict.alarm:
            if not groups or window.start - groups[-1][-1][0].start > QUIET:
                groups.append([])
            groups[-1].append((window, verdict))
    return [
        Alarm(
            group[0][0].start,
            group[-1][0].end,
            len(group),
            max(verdict.score for _, verdict in group),
            tuple(entry.text() for entry in max((v for _, v in group), key=lambda v: v.score).alarming[:4]),
        )
        for group in groups
    ]


def _catch(
    injection: Injection,
    detector: Detector,
    past: History,
    windows: Sequence[Window],
    verdicts: Sequence[Judgement],
    changed: Any,
    time: str,
) -> Catch:
    """The first window with the incident that is an alarm, and is none without it, or by other columns."""
    recent = Recent()
    for window in past.windows[-50:]:
        recent = recent.after(window)
    clock = changed[time]
    for window, verdict in zip(windows, verdicts, strict=True):
        if window.start >= injection.end:
            break
        if window.end > injection.start:
            inside = changed[(clock >= window.start) & (clock < window.end)]
            window = Window(window.start, window.end, detector.profile.count(inside, time))
            judgement = detector.judge(window, recent)
            before = {(entry.column, entry.what) for entry in verdict.alarming}
            new = [entry for entry in judgement.alarming if (entry.column, entry.what) not in before]
            if judgement.alarm and new:
                texts = tuple(entry.text() for entry in new[:4])
                return Catch(injection.text, injection.start, window.end, texts)
        recent = recent.after(window)
    return Catch(injection.text, injection.start, None, ())


def _rate(
    frame: Any,
    time: str,
    learn: Callable[[Any], Profile],
    options: dict[str, Any],
    splits: int,
    rows: int | None,
    every: timedelta | None,
    tell: Callable[[str], object],
) -> Rate | None:
    """The measured rate; None where half of the history is too short for a promise."""
    week = week_of(times_of(frame[time]))
    weeks = np.unique(week)
    counts, days = [], 0.0
    for split in range(splits):
        tell(f"Measuring the rate: split {split + 1} of {splits} …")
        order = np.random.default_rng(split).permutation(weeks)
        halves = order[: len(order) // 2].tolist(), order[len(order) // 2 :].tolist()
        total, days = 0, 0.0
        for history, test in (halves, halves[::-1]):
            profile = learn(frame[np.isin(week, history)])
            year = cut(frame, profile, times=time, rows=rows, every=every)
            try:
                detector = Detector.calibrate(year.of_weeks(history), profile=profile, **options)
            except MonitoringError:
                return None
            tried = year.of_weeks(test)
            total += len(_alarms(tried.windows, detector.judge_all(tried.windows)))
            days += covered_days(tried)
        counts.append(total)
    mean, months = float(np.mean(counts)), days / 30
    wish = options["alarms"] * (_MONTH / options["per"])
    low, high = _poisson_interval(mean)
    return Rate(wish, mean / months, low / months, high / months, splits)


def _poisson_interval(count: float, z: float = 1.645) -> tuple[float, float]:
    """A 90 % interval of the mean of a count (Byar's approximation; Breslow and Day, 1987, page 69)."""
    low = count * (1 - 1 / (9 * count) - z / (3 * math.sqrt(count))) ** 3 if count > 0 else 0.0
    more = count + 1
    return max(low, 0.0), more * (1 - 1 / (9 * more) + z / (3 * math.sqrt(more))) ** 3
