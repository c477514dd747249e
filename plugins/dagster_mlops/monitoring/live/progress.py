"""The rows that a watch has read and the windows it has decided so far."""

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from typing import Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.monitoring.detection import Recent
from dagster_mlops.monitoring.live.incidents import Course, Incident
from dagster_mlops.monitoring.live.open_windows import OpenWindow


@lazy_dataclass(frozen=True)
class Progress:
    """The state between two looks at a log; `alarm` is the digest of the alarm, by whose bins windows are counted."""

    alarm: str
    start: datetime  # rows before are not read
    log: str = ""  # cursor of the prediction log
    windows: list[OpenWindow] = field(default_factory=list)
    closed: datetime | None = None  # end of the latest window with a verdict
    last_row: datetime | None = None
    recent: Recent = field(default_factory=Recent)
    course: Course = field(default_factory=Course)
    late: int = 0  # rows that came after the verdict on their window
    score: float | None = None  # of the latest window that was judged, …
    threshold: float | None = None  # … and its threshold
    ahead: datetime | None = None  # time of the latest look that has read rows with times to come

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "alarm": self.alarm,
            "start": self.start.isoformat(),
            "log": self.log,
            "windows": [window.to_dict() for window in self.windows],
            "closed": self.closed and self.closed.isoformat(),
            "last_row": self.last_row and self.last_row.isoformat(),
            "recent": self.recent.to_dict(),
            "above": self.course.above,
            "incident": self.course.incident and self.course.incident.to_dict(),
            "late": self.late,
            "score": self.score,
            "threshold": self.threshold,
            "ahead": self.ahead and self.ahead.isoformat(),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Progress":
        """The progress of :meth:`to_dict`."""
        incident = stored["incident"] and Incident.from_dict(stored["incident"])
        return cls(
            alarm=stored["alarm"],
            start=datetime.fromisoformat(stored["start"]),
            log=stored["log"],
            windows=[OpenWindow.from_dict(window) for window in stored["windows"]],
            closed=stored["closed"] and datetime.fromisoformat(stored["closed"]),
            last_row=stored["last_row"] and datetime.fromisoformat(stored["last_row"]),
            recent=Recent.from_dict(stored["recent"]),
            course=Course(tuple(stored["above"]), incident),
            late=stored["late"],
            score=stored["score"],
            threshold=stored["threshold"],
            ahead=datetime.fromisoformat(stored["ahead"]) if stored.get("ahead") else None,
        )
