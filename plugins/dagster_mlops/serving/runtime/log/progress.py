"""The bytes of a log that have been read, so that the next reader goes on where the last one ended."""

import json
from collections.abc import Collection


class Progress:
    """The bytes of each segment that have been read, as ranges.

    >>> progress = Progress()
    >>> progress.add("a", 0, 10)
    >>> progress.add("a", 10, 30)
    >>> str(progress), progress.next("a", 5), progress.covers("a", 5, 40)
    ('{"a":[0,30]}', 30, False)
    """

    def __init__(self, text: str = "") -> None:
        try:
            ranges = json.loads(text) if text else {}
            self._ranges = {name: list(zip(flat[::2], flat[1::2], strict=True)) for name, flat in ranges.items()}
        except (ValueError, TypeError, AttributeError):
            raise ValueError(f"{text[:80]!r} is not a cursor of a prediction log; start with an empty one.") from None

    def __str__(self) -> str:
        flat = {name: [at for pair in self._ranges[name] for at in pair] for name in sorted(self._ranges)}
        return json.dumps(flat, separators=(",", ":")) if flat else ""

    def add(self, segment: str, start: int, end: int) -> None:
        """Take the bytes from `start` to `end` as read."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted([*self._ranges.get(segment, []), (start, end)]):
            if merged and first <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(last, merged[-1][1])
            else:
                merged.append((first, last))
        self._ranges[segment] = merged

    def next(self, segment: str, position: int) -> int:
        """The first byte from `position` on that has not been read."""
        return next((end for start, end in self._ranges.get(segment, []) if start <= position < end), position)

    def covers(self, segment: str, start: int, end: int) -> bool:
        """True if all these bytes have been read."""
        return start >= end or self.next(segment, start) >= end

    def within(self, segment: str, start: int, end: int) -> list[tuple[int, int]]:
        """The ranges between these bytes that have been read."""
        return [(first, last) for first, last in self._ranges.get(segment, []) if first < end and start < last]

    def forget_before(self, day: str) -> None:
        """Forget the segments of former days, whose names begin with them, of a reader that starts later."""
        self._ranges = {name: ranges for name, ranges in self._ranges.items() if name[: len(day)] >= day}

    def keep(self, segments: Collection[str]) -> None:
        """Forget the segments that are not among these."""
        self._ranges = {name: ranges for name, ranges in self._ranges.items() if name in segments}
