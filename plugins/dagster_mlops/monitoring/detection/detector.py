"""A detector of change that alarms as often as was asked for while nothing changes."""

import functools
import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from dagster_mlops.core.arrays import np
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.timestamps import to_microseconds
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.detection.judgement import PLAIN, ColumnScore, Judgement
from dagster_mlops.monitoring.detection.recent import MEMORY, Recent
from dagster_mlops.monitoring.detection.rows import Rows, row_of, rows_of
from dagster_mlops.monitoring.detection.scale import Scale
from dagster_mlops.monitoring.detection.scores import Raw, Scorer
from dagster_mlops.monitoring.detection.season import season
from dagster_mlops.monitoring.detection.threshold import Peaks, threshold_for
from dagster_mlops.monitoring.windows.counts import HOUR, HOURS, Window, expect_version, pack, unpack, week_of
from dagster_mlops.monitoring.windows.cutting import History
from dagster_mlops.monitoring.windows.profile import Profile

QUIET = timedelta(days=1)
"""Alarms that follow each other within a day are one incident."""
_DAY_US = 86_400_000_000
_SHORT_WINDOWS, _SHORT_WEEKS = 60, 6
_LEAST_WINDOWS, _LEAST_WEEKS = 20, 2
_FOLDS = 13
_LEAST_THRESHOLD = 0.5  # half of the usual changes; where nothing ever changes, rounding errors would be alarms


@lazy_dataclass(frozen=True, eq=False)
class Detector:
    """A window is an alarm where its most unusual score is over a threshold; :meth:`calibrate` finds both.

    All columns, and all ways in which a column can change, share one threshold, so that the rate is that of the whole
    model. What is usual is learnt from consecutive windows, because rows of production hang together: neighbours share
    an hour, the weather, a batch. Each week is scored against the others only.

    Args:
        profile: The bins.
        threshold: Score from which a window is an alarm.
        least_rows: Rows below which a window is undecided, unless values are missing, malformed, unseen or far off.
        minimum_effect: Smallest share of rows that has to be distributed differently.
        promise: The rate that was asked for, and how far the history bears it out, in words.
        expected: Expected counts of a row by hour of the week.
        scale: Natural size of each score.
    """

    profile: Profile
    threshold: float
    least_rows: int
    minimum_effect: float
    promise: str
    expected: "np.ndarray"
    scale: Scale

    @classmethod
    def calibrate(
        cls,
        history: History,
        *,
        profile: Profile,
        alarms: float = 1.0,
        per: timedelta = timedelta(days=30),
        minimum_effect: float = 0.0,
    ) -> "Detector":
        """Learn what is usual, and the threshold, from a history in which nothing was wrong.

        Args:
            history: Consecutive windows of the size that is judged later, from :func:`cut`.
            profile: The profile that they were counted with.
            alarms: False alarms that are accepted for the whole model …
            per: … in this time.
            minimum_effect: A change of the distribution of fewer rows than this share is not an alarm; what is
                missing, malformed, unseen or far out of range always counts.

        Raises:
            MonitoringError: the history is too short for any promise, or the rate is not above 0.
        """
        if not alarms > 0 or not math.isfinite(alarms) or per <= timedelta(0):
            raise MonitoringError(f"alarms={alarms} per {per}: ask for a rate above 0, such as 1 per 30 days.")
        if alarms > per / QUIET:
            raise MonitoringError(
                f"alarms={alarms} per {per}: windows above the threshold within a day are one alarm, so that there is "
                "one a day at most. Ask for fewer."
            )
        if not profile.columns:
            raise MonitoringError("The history has no column to watch beside its times.")
        if not 0 <= minimum_effect < 1:
            raise MonitoringError(f"minimum_effect={minimum_effect} is not a share of rows, from 0 to below 1.")
        windows = sorted(history.windows, key=lambda window: window.start)
        starts = np.array([to_microseconds(window.start) for window in windows], np.int64)
        weeks = week_of(starts)
        spans = len(np.unique(weeks))
        if len(windows) < _LEAST_WINDOWS or spans < _LEAST_WEEKS:
            raise MonitoringError(
                f"The history has {len(windows)} windows in {spans} calendar weeks, and a promise needs at least "
                f"{_LEAST_WINDOWS} in {_LEAST_WEEKS}. Take a longer history, or shorter windows."
            )
        scorer, rows = Scorer(profile), rows_of(windows, profile.zone)
        folds = {week: place % _FOLDS for place, week in enumerate(np.unique(weeks).tolist())}
        fold = np.array([folds[week] for week in weeks.tolist()])
        hour_fold = np.array([folds.get(week, -1) for week in week_of(history.starts).tolist()])
        index = np.arange(len(windows))
        pieces: list[Raw] = []
        order: list[Any] = []
        for number in sorted(set(folds.values())):
            use = hour_fold != number
            expected = season(history.starts[use], history.rows[use], history.counts[use], profile.zone)
            pieces.append(scorer.raw(rows[fold == number], expected, own=True))
            order.append(index[fold == number])
        places = np.argsort(np.concatenate(order))
        raw = Raw(*(np.concatenate(parts)[places] for parts in zip(*pieces, strict=True)))
        scores = np.full(len(windows), -np.inf)
        overall, structural = Scale.learn(raw, scorer.names), np.arange(len(scorer.names)) >= scorer.squared
        for number in sorted(set(folds.values())):
            inside = fold == number
            scale = Scale.learn(Raw(*(part[~inside] for part in raw)), scorer.names)
            # What is missing, or unseen, comes in rare bursts. A column that has had one is expected to have another:
            # else the bursts of one column would set the threshold for all.
            step = np.where(structural, np.sqrt(scale.step * np.maximum(scale.step, overall.step)), scale.step)
            scale = Scale(scale.natural, scale.middle, step)
            z = _effective(scale.z(Raw(*(part[inside] for part in raw))), raw.values[inside], scorer, minimum_effect)
            scores[inside] = z.max(axis=1)
        days = covered_days(history)
        incidents = alarms * days / (per / timedelta(days=1))
        short = len(windows) < _SHORT_WINDOWS or spans < _SHORT_WEEKS
        peaks = Peaks(starts / _DAY_US, scores, QUIET / timedelta(days=1))
        threshold, tops = threshold_for(peaks, incidents, widen=1.3 if short else 0.0)
        expected = season(history.starts, history.rows, history.counts, profile.zone).astype(np.float32)
        return cls(
            profile=profile,
            threshold=max(threshold, _LEAST_THRESHOLD),
            least_rows=max(1, int(np.quantile(rows.rows, 0.02) / 2)),
            minimum_effect=minimum_effect,
            promise=_promise(alarms, per, windows, spans, days, incidents, tops, short),
            expected=expected,
            scale=overall,
        )

    def judge(self, window: Window, recent: Recent | None = None) -> Judgement:
        """The verdict on a window.

        Args:
            window: Counts made with the detector's profile.
            recent: The windows before it, for steps of slowly varying columns.

        Raises:
            MonitoringError: the counts were made with another profile.
        """
        if window.counts.profile != self.profile.digest:
            raise MonitoringError("The window was counted with another profile than the detector's. Count it again.")
        before = recent.before(window) if recent else None
        return self._judgements(row_of(window, before, self.profile.zone))[0]

    def judge_all(self, windows: Sequence[Window]) -> list[Judgement]:
        """The verdicts on consecutive windows, each with those before it as its recent ones, but for the alarms.

        With an incident among the days that steps are measured against, its end would be a step.

        Args:
            windows: In order of time.
        """
        if any(window.counts.profile != self.profile.digest for window in windows):
            raise MonitoringError("A window was counted with another profile than the detector's.")
        judgements = self._judgements(rows_of(windows, self.profile.zone)) if windows else []
        recent, after_alarm = Recent(), None
        if any(judgement.alarm for judgement in judgements):
            for i, window in enumerate(windows):
                if after_alarm and window.start <= after_alarm:
                    judgements[i] = self.judge(window, recent)
                if judgements[i].alarm:
                    after_alarm = window.end + MEMORY
                else:
                    recent = recent.after(window)
        return judgements

    def _judgements(self, rows: Rows) -> list[Judgement]:
        scorer = self._scorer
        raw = scorer.raw(rows, self.expected.astype(float))
        z = _effective(self.scale.z(raw), raw.values, scorer, self.minimum_effect)
        few = rows.rows < self.least_rows
        z[few, : scorer.squared] = -np.inf
        # A column that has been broken in the history is an alarm when most of it is broken again.
        z = np.where(raw.broken, np.maximum(z, 2 * self.threshold), z)
        z[rows.rows == 0] = -np.inf
        worst = np.argsort(-z, axis=1, kind="stable")
        judgements = []
        for i, count in enumerate(rows.rows.tolist()):
            most: dict[int, tuple[bool, float, int]] = {}  # of each column: is it plain, its largest z, what to report
            for place in worst[i].tolist():
                name, value = scorer.names[place], float(z[i, place])
                if not math.isfinite(value):
                    continue
                is_plain = name.what in PLAIN and value >= self.threshold
                if name.column not in most:
                    most[name.column] = (is_plain, value, place)
                elif is_plain and not most[name.column][0]:
                    most[name.column] = (True, most[name.column][1], place)
            columns = [
                ColumnScore(
                    self.profile.columns[column].name,
                    scorer.names[place].what,
                    value,
                    float(raw.values[i, place]),
                    float(raw.expected[i, place]),
                )
                for column, (_, value, place) in sorted(most.items(), key=lambda item: item[1][:2], reverse=True)
            ]
            score = float(z[i].max()) if count else 0.0
            undecided = ""
            if few[i] and not (count and score >= self.threshold):
                undecided = f"{count} rows, and at least {self.least_rows} are needed."
            judgements.append(Judgement(score, self.threshold, undecided, tuple(columns)))
        return judgements

    @functools.cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.profile)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object, about 100 kB."""
        return {
            "version": 1,
            "profile": self.profile.to_dict(),
            "threshold": self.threshold,
            "least_rows": self.least_rows,
            "minimum_effect": self.minimum_effect,
            "promise": self.promise,
            "expected": pack(self.expected),
            "scale": [part.tolist() for part in (self.scale.natural, self.scale.middle, self.scale.step)],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Detector":
        """The detector that :meth:`to_dict` wrote.

        Raises:
            MonitoringError: it was written by a later version.
        """
        expect_version(data, "detectors")
        profile = Profile.from_dict(data["profile"])
        shape = (HOURS, profile.size + 2 * len(profile.columns))
        return cls(
            profile=profile,
            threshold=data["threshold"],
            least_rows=data["least_rows"],
            minimum_effect=data["minimum_effect"],
            promise=data["promise"],
            expected=unpack(data["expected"], "float32", shape),
            scale=Scale(*(np.array(part, float) for part in data["scale"])),
        )


def _effective(z: "np.ndarray", values: "np.ndarray", scorer: Scorer, minimum_effect: float) -> "np.ndarray":
    """Scores without those of distributions that differ in fewer rows than the minimum."""
    if minimum_effect > 0:
        small = values[:, : scorer.distributions] < minimum_effect
        z = z.copy()
        for place, name in enumerate(scorer.names[: scorer.squared]):
            z[small[:, name.column], place] = 0.0
    return z


def covered_days(history: History) -> float:
    """The time that a history covers, in days, of which a gap is one at most: one wrong date makes no century."""
    return (int(np.minimum(np.diff(history.starts), _DAY_US).sum()) + HOUR) / _DAY_US


def _promise(
    alarms: float,
    per: timedelta,
    windows: Sequence[Window],
    weeks: int,
    days: float,
    incidents: float,
    tops: int,
    short: bool,
) -> str:
    rate = f"{alarms:g} false alarm{'s' * (alarms != 1)} per {per / timedelta(days=1):g} days for the whole model"
    basis = f"{len(windows):,} windows of {days:.0f} days in {weeks} calendar weeks"
    text = f"{rate}, from {basis}: {incidents:.1f} expected in them, extrapolated from {tops} peaks."
    if short:
        text += (
            f" The history is short (fewer than {_SHORT_WINDOWS} windows or {_SHORT_WEEKS} weeks), so the threshold is "
            "widened: expect fewer alarms, and later ones."
        )
    return text
