"""Incidents: the windows above the threshold that belong together, and the one alarm that each of them is.

A false alarm is counted once for each incident, so an incident ends as the calibration ends it: after a day without a
window above the threshold. One that comes back before that is the same incident.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from dagster_mlops.monitoring.facts import State


class Persistence(NamedTuple):
    """The number of windows that decide.

    An incident begins with `needed` of the last `of` windows above the threshold, has recovered after `calm` windows
    below `hysteresis` times the threshold, and is over after the time `quiet` without one above it.
    """

    needed: int = 1
    of: int = 1
    calm: int = 3
    hysteresis: float = 0.9
    quiet: timedelta = timedelta(days=1)

    def faults(self) -> dict[str, bool]:
        """The values that no incident could have, for :func:`dagster_mlops.core.bounds.refuse_useless`."""
        return {
            f"needed={self.needed} of={self.of}: needed is not between 1 and of": not 1 <= self.needed <= self.of,
            f"of={self.of} is more than 100": self.of > 100,
            f"calm={self.calm} is less than 1": self.calm < 1,
            f"hysteresis={self.hysteresis} is not above 0 and at most 1": not 0 < self.hysteresis <= 1,
            f"quiet={self.quiet} is less than 0": self.quiet < timedelta(0),
        }


class Incident(NamedTuple):
    """Windows above the threshold that belong together. `id` is the end of the window that made it one."""

    id: str
    since: datetime  # start of the first window above the threshold
    last: datetime  # end of the latest one
    windows: int = 1
    peak: float = 0.0
    columns: tuple[str, ...] = ()
    calm: int = 0  # windows below it since
    recovered: bool = False

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return {**self._asdict(), "since": self.since.isoformat(), "last": self.last.isoformat()}

    @classmethod
    def from_dict(cls, stored: dict) -> "Incident":
        """The incident of :meth:`to_dict`."""
        times = {name: datetime.fromisoformat(stored[name]) for name in ("since", "last")}
        return cls(**{**stored, **times, "columns": tuple(stored["columns"])})


class WindowScore(NamedTuple):
    """The time, score and threshold of a window, and the columns above it, worst first."""

    start: datetime
    end: datetime
    score: float
    threshold: float
    columns: Sequence[str] = ()

    @property
    def is_above(self) -> bool:
        """True for a window that is an alarm by itself. A score that is not a number is above any threshold."""
        return not self.score < self.threshold


class Course(NamedTuple):
    """The part of former windows that the next one needs: whether the last ones were above it, and the incident."""

    above: tuple[bool, ...] = ()
    incident: Incident | None = None

    def after(self, window: WindowScore, rule: Persistence) -> "tuple[State, Course]":
        """The state at the end of a window, and the course with it.

        >>> from datetime import UTC
        >>> day = datetime(2026, 3, 1, tzinfo=UTC)
        >>> windows = [WindowScore(day + timedelta(hours=h), day + timedelta(hours=h + 1), s, 4.0)
        ...            for h, s in enumerate([1, 9, 8, 1, 1, 1, 1])]
        >>> course, states = Course(), []
        >>> for window in windows:
        ...     state, course = course.after(window, Persistence())
        ...     states.append(state)
        >>> states
        ['ok', 'detected', 'detected', 'detected', 'detected', 'recovered', 'ok']
        """
        above = (*self.above, window.is_above)[-rule.of :]
        incident = self.incident
        if incident and incident.recovered and window.start - incident.last > rule.quiet:
            incident = None
        decides = sum(above) >= rule.needed
        if window.is_above and (decides or (incident and not incident.recovered)):
            return "detected", Course(above, _grown(incident, window))
        if incident is None or incident.recovered:
            return "suspected" if window.is_above else "ok", Course(above, incident)
        is_calm = window.score < rule.hysteresis * window.threshold
        calm = incident.calm + 1 if is_calm else 0
        recovered = calm >= rule.calm
        return "recovered" if recovered else "detected", Course(
            above, incident._replace(calm=calm, recovered=recovered)
        )


def _grown(incident: Incident | None, window: WindowScore) -> Incident:
    if incident is None:
        return Incident(
            window.end.isoformat(), window.start, window.end, peak=window.score, columns=tuple(window.columns)
        )
    columns = dict.fromkeys([*incident.columns, *window.columns])
    return incident._replace(
        last=window.end,
        windows=incident.windows + 1,
        peak=max(incident.peak, window.score),
        columns=tuple(columns),
        calm=0,
        recovered=False,
    )
