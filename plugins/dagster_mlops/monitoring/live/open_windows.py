"""Windows that are still being filled: counts of the rows that were read, for each window and model version."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from dagster_mlops.core.arrays import np, pd
from dagster_mlops.monitoring.alarm.value import Size
from dagster_mlops.monitoring.windows.counts import HOUR, MONDAY, Counts, Span
from dagster_mlops.monitoring.windows.profile import Profile
from dagster_mlops.monitoring.windows.readings import times_of


class OpenWindow(NamedTuple):
    """The rows of a window so far. `first` and `last` are the times of its oldest and newest row."""

    start: datetime
    first: datetime
    last: datetime
    counts: Counts
    versions: Mapping[str, int]  # rows of each model version

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        times = {name: getattr(self, name).isoformat() for name in ("start", "first", "last")}
        return {**times, "counts": self.counts.to_dict(), "versions": dict(self.versions)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "OpenWindow":
        """The window of :meth:`to_dict`."""
        times = {name: datetime.fromisoformat(stored[name]) for name in ("start", "first", "last")}
        return cls(**times, counts=Counts.from_dict(stored["counts"]), versions=dict(stored["versions"]))

    def __add__(self, other: "OpenWindow") -> "OpenWindow":  # pyright: ignore[reportIncompatibleMethodOverride]
        versions = {v: self.versions.get(v, 0) + other.versions.get(v, 0) for v in {*self.versions, *other.versions}}
        times = (min(self.start, other.start), min(self.first, other.first), max(self.last, other.last))
        return OpenWindow(*times, self.counts + other.counts, versions)


class OpenWindows:
    """The windows that rows have been read of and that no verdict has been given on, oldest first.

    Windows by time begin at multiples of their length, from a Monday at midnight (UTC); windows by rows where the one
    before is full.
    """

    def __init__(self, size: Size, windows: "list[OpenWindow] | None" = None) -> None:
        self.size = size
        self.windows = {window.start: window for window in windows or []}

    def add(self, frame: "pd.DataFrame", profile: Profile, *, closed: datetime | None) -> int:
        """Count rows with the columns ``timestamp``, ``model_version`` and those of the profile, oldest first.

        Returns how many of them came too late: their window has its verdict, and ends by `closed`.
        """
        late = 0
        for start, rows in self._parts(frame):
            if closed and self.size.every and start < closed:
                late += len(rows)
                continue
            times = rows["timestamp"]
            versions = {str(k): int(n) for k, n in rows["model_version"].astype(str).value_counts().items()}
            window = OpenWindow(
                start,
                times.min().to_pydatetime(),
                times.max().to_pydatetime(),
                profile.count(rows, times=times),
                versions,
            )
            before = self.windows.get(start)
            self.windows[start] = before + window if before else window
        return late

    def _parts(self, frame: "pd.DataFrame") -> "Iterator[tuple[datetime, pd.DataFrame]]":
        if self.size.every:
            span = Span.of(self.size.every)
            for _, positions in pd.Series(np.arange(len(frame))).groupby(
                (times_of(frame["timestamp"]) + MONDAY * HOUR) // span.microseconds
            ):
                rows = frame.iloc[positions]
                yield span.start(rows["timestamp"].iloc[0].to_pydatetime()), rows
            return
        at = 0
        while at < len(frame):
            latest = self._latest()
            room = self.size.rows - latest.counts.rows if latest else 0
            if room > 0 and latest:
                start, count = latest.start, room
            else:
                # Two windows may begin with rows of the same time.
                start = frame["timestamp"].iloc[at].to_pydatetime()
                start = max(start, latest.start + timedelta(microseconds=1)) if latest else start
                count = self.size.rows
            yield start, frame.iloc[at : at + count]
            at += count

    def _latest(self) -> OpenWindow | None:
        return self.windows[max(self.windows)] if self.windows else None

    def due(self, until: datetime, most: int) -> "list[OpenWindow]":
        """Take out the windows that are full or, by time, have ended by `until`; oldest first, `most` of them."""
        if self.size.every:
            due = [w for start, w in self.windows.items() if start + self.size.every <= until]
        else:
            due = [window for window in self.windows.values() if window.counts.rows >= self.size.rows]
        due = sorted(due, key=lambda window: window.start)[:most]
        for window in due:
            del self.windows[window.start]
        return due

    def end_of(self, window: OpenWindow) -> datetime:
        """The end of a window: of one by rows, just after its newest row."""
        return window.start + self.size.every if self.size.every else window.last + timedelta(microseconds=1)


def first_start(time: datetime, size: Size) -> datetime:
    """The start of the first window that has all its rows, for a watch that begins at `time`."""
    if not size.every:
        return time
    start = Span.of(size.every).start(time)
    return start if start == time else start + size.every
