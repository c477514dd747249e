"""Counts of a window: whole numbers, so that windows merge exactly, in any order."""

import base64
import zlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from dagster_mlops.core.arrays import np
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.timestamps import from_microseconds, read_timestamp, to_microseconds, utc
from dagster_mlops.errors import MonitoringError

HOURS = 168
"""Hours of a week; hour 0 begins on Monday at midnight."""
HOUR = 3_600_000_000
WEEK = HOURS * HOUR
MONDAY = 72  # 1970 began on a Thursday


def hour_of_week(microseconds: "np.ndarray", zone: str = "UTC") -> "np.ndarray":
    """The hour of the week, 0 to 167, of times in microseconds since 1970, on the clocks of a time zone."""
    hours = microseconds // HOUR
    if zone != "UTC":
        clock = ZoneInfo(zone)
        distinct, place = np.unique(hours, return_inverse=True)
        # One offset an hour: to the minute it matters in a few zones only, and there to no one.
        offsets = [from_microseconds(int(hour) * HOUR).astimezone(clock).utcoffset() for hour in distinct]
        shift = [round((offset or timedelta(0)) / timedelta(hours=1)) for offset in offsets]
        hours = hours + np.array(shift, np.int64)[place]
    return (hours + MONDAY) % HOURS


def week_of(microseconds: "np.ndarray") -> "np.ndarray":
    """The number of the week, from Monday to Sunday in UTC, that times in microseconds since 1970 lie in."""
    return (microseconds + MONDAY * HOUR) // WEEK


@lazy_dataclass(frozen=True, eq=False)
class Counts:
    """The number of values of each column in each bin of a profile.

    Everything is a whole number, so that ``a + b`` is exact, and so associative and commutative.

    Args:
        profile: Digest of the profile whose bins these are; counts of two profiles do not merge.
        rows: Number of rows.
        bins: Values by bin, all columns of the profile one after the other.
        sums: Two numbers for each column: sum and sum of squares of the positions of its values on the profile's grid.
        hours: Rows by hour of the week in the profile's time zone (168); all 0 where the rows' times are not known.
    """

    profile: str
    rows: int
    bins: "np.ndarray"
    sums: "np.ndarray"
    hours: "np.ndarray"

    def __add__(self, other: "Counts") -> "Counts":
        if self.profile != other.profile:
            raise MonitoringError("Counts of two profiles have different bins. Count both windows with one profile.")
        return Counts(
            self.profile,
            self.rows + other.rows,
            self.bins + other.bins,
            self.sums + other.sums,
            self.hours + other.hours,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counts) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """A small JSON object."""
        hours = {str(hour): int(self.hours[hour]) for hour in np.flatnonzero(self.hours)}
        return {
            "version": 1,
            "profile": self.profile,
            "rows": self.rows,
            "bins": self.bins.tolist(),
            "sums": self.sums.tolist(),
            "hours": hours,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Counts":
        """The counts that :meth:`to_dict` wrote.

        Raises:
            MonitoringError: they were written by a later version.
        """
        expect_version(data, "counts")
        hours = np.zeros(HOURS, np.int64)
        for hour, rows in data["hours"].items():
            hours[int(hour)] = rows
        bins, sums = (np.array(data[name], np.int64) for name in ("bins", "sums"))
        return cls(data["profile"], data["rows"], bins, sums, hours)


@lazy_dataclass(frozen=True)
class Window:
    """The counts of the rows of one span of time, `end` excluded. Times are in UTC."""

    start: datetime
    end: datetime
    counts: Counts

    def __add__(self, other: "Window") -> "Window":
        return Window(min(self.start, other.start), max(self.end, other.end), self.counts + other.counts)

    def to_dict(self) -> dict[str, Any]:
        """A small JSON object."""
        times = {"start": utc(self.start).isoformat(), "end": utc(self.end).isoformat()}
        return {**times, "counts": self.counts.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Window":
        """The window that :meth:`to_dict` wrote."""
        start, end = read_timestamp(data["start"]), read_timestamp(data["end"])
        return cls(start, end, Counts.from_dict(data["counts"]))

    def hours(self, zone: str = "UTC") -> "np.ndarray":
        """Shares of the rows by hour of the week, 168 numbers; by the clock alone where the rows' times are unknown."""
        hours = self.counts.hours
        if not hours.any():
            start, end = to_microseconds(self.start), to_microseconds(self.end)
            step = max(1, min(HOUR, end - start) // 4)
            hours = np.bincount(hour_of_week(np.arange(start, max(end, start + 1), step), zone), minlength=HOURS)
        return hours / hours.sum()


class Span(NamedTuple):
    """A step of time in microseconds, as whole windows are cut by it."""

    microseconds: int

    @classmethod
    def of(cls, every: timedelta) -> "Span":
        return cls(every // timedelta(microseconds=1))

    def start(self, time: datetime) -> datetime:
        """The start of the window that holds `time`; windows are aligned to Monday, midnight, UTC.

        >>> Span.of(timedelta(minutes=5)).start(datetime(2013, 1, 1, 0, 7)).minute
        5
        """
        offset = MONDAY * HOUR
        return from_microseconds((to_microseconds(time) + offset) // self.microseconds * self.microseconds - offset)


def expect_version(data: Mapping[str, Any], what: str) -> None:
    """Refuse what a later version of the library has written.

    Raises:
        MonitoringError: the version is not 1.
    """
    if data.get("version") != 1:
        raise MonitoringError(
            f"These {what} have version {data.get('version')!r}, and this library reads version 1. Upgrade it, or "
            f"write the {what} with this version."
        )


def pack(array: "np.ndarray") -> str:
    """Numbers as a short text for JSON."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()


def unpack(text: str, kind: str, shape: tuple[int, ...]) -> "np.ndarray":
    """The numbers that :func:`pack` wrote, of NumPy's type `kind`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), kind).reshape(shape).copy()
