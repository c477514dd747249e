"""The result of a backtest: the rate of alarms, the alarms, and the incidents that were caught."""

import math
from datetime import datetime, timedelta
from typing import Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass


@lazy_dataclass(frozen=True)
class Rate:
    """Alarms in weeks that a detector was not calibrated on.

    Args:
        asked: Alarms in 30 days that were asked for.
        measured: Alarms in 30 days, as a mean of the splits.
        low: Lower end of a 90 % interval of the true rate, were the alarms independent.
        high: Upper end.
        splits: Number of random splits of the weeks in halves; each half is judged by the other.
    """

    asked: float
    measured: float
    low: float
    high: float
    splits: int

    @property
    def holds(self) -> bool:
        """True if the rate that was asked for lies in the interval."""
        return self.low <= self.asked <= self.high


@lazy_dataclass(frozen=True)
class Alarm:
    """An alarm of the judged period: consecutive windows over the threshold, a day of quiet before."""

    start: datetime
    end: datetime
    windows: int
    score: float
    columns: tuple[str, ...]


@lazy_dataclass(frozen=True)
class Catch:
    """An injected incident, and the first window that was an alarm because of it."""

    incident: str
    start: datetime
    caught: datetime | None
    columns: tuple[str, ...]

    @property
    def delay(self) -> timedelta | None:
        """Time from the start of the incident to the end of the window; None if it was not caught."""
        return self.caught - self.start if self.caught else None


@lazy_dataclass(frozen=True)
class Backtest:
    """The result of a backtest.

    Args:
        promise: The detector's promise in words.
        rate: The asked rate against the measured one; None where the history is too short to be halved.
        since: Start of the judged period; the detector was calibrated on everything before it.
        until: Its end.
        alarms: Alarms in it.
        catches: Injected incidents.
        times: Ends of its windows.
        scores: Their scores.
        threshold: Score from which a window is an alarm.
    """

    promise: str
    rate: Rate | None
    since: datetime
    until: datetime
    alarms: tuple[Alarm, ...]
    catches: tuple[Catch, ...]
    times: tuple[datetime, ...]
    scores: tuple[float, ...]
    threshold: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        rate = self.rate and {
            "asked": self.rate.asked, "measured": self.rate.measured, "low": self.rate.low, "high": self.rate.high,
            "splits": self.rate.splits, "holds": self.rate.holds,
        }  # fmt: skip
        return {
            "promise": self.promise,
            "rate_in_30_days": rate,
            "since": self.since.isoformat(),
            "until": self.until.isoformat(),
            "threshold": self.threshold,
            "alarms": [
                {"start": a.start.isoformat(), "end": a.end.isoformat(), "windows": a.windows, "score": a.score,
                 "columns": list(a.columns)}
                for a in self.alarms
            ],
            "incidents": [
                {"incident": c.incident, "caught": c.caught.isoformat() if c.caught else None,
                 "seconds": c.delay.total_seconds() if c.delay else None, "columns": list(c.columns)}
                for c in self.catches
            ],
            "windows": [
                {"end": time.isoformat(), "score": score if math.isfinite(score) else None}
                for time, score in zip(self.times, self.scores, strict=True)
            ],
        }  # fmt: skip
