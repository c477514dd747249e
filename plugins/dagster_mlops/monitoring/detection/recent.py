"""The days before a window, as counts: the only state that a live detector carries from window to window."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from dagster_mlops.core.arrays import np
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.timestamps import to_microseconds
from dagster_mlops.monitoring.windows.counts import Counts, Span, Window, expect_version

REACH = timedelta(days=3)
BLOCK = Span.of(timedelta(hours=6))
MEMORY = REACH + timedelta(hours=6)
"""The time after which a window has no part in any verdict."""


@lazy_dataclass(frozen=True)
class Recent:
    """The windows of the last three days, merged into blocks of six hours: at most 14 of them.

    >>> Recent().windows
    ()
    """

    windows: tuple[Window, ...] = ()

    def after(self, window: Window) -> "Recent":
        """The state once `window` has been judged; windows come in order of time."""
        blocks = {block_end(entry): entry for entry in self.windows}
        end = block_end(window)
        blocks[end] = blocks[end] + window if end in blocks else window
        oldest = to_microseconds(window.start) - REACH // timedelta(microseconds=1)
        return Recent(tuple(blocks[key] for key in sorted(blocks) if key >= oldest))

    def before(self, window: Window) -> Counts | None:
        """The counts of the three days before `window`; None if there are none."""
        oldest = to_microseconds(window.start) - REACH // timedelta(microseconds=1)
        parts = [entry.counts for entry in self.windows if block_end(entry) >= oldest]
        return sum(parts[1:], parts[0]) if parts else None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object of some kilobytes."""
        return {"version": 1, "windows": [window.to_dict() for window in self.windows]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Recent":
        """The state that :meth:`to_dict` wrote.

        Raises:
            MonitoringError: it was written by a later version.
        """
        expect_version(data, "recent windows")
        return cls(tuple(Window.from_dict(window) for window in data["windows"]))


def block_end(window: Window) -> int:
    """End of the block of six hours in which a window starts, in microseconds since 1970."""
    return to_microseconds(BLOCK.start(window.start)) + BLOCK.microseconds


def all_before(windows: Sequence[Window], counts: "np.ndarray") -> "np.ndarray":
    """For each window the sum of `counts` (one row each) over what :meth:`Recent.before` of the earlier ones holds.

    Args:
        windows: All windows, in order of time.
        counts: Whole numbers, a row for each window.
    """
    ends = np.array([block_end(window) for window in windows], np.int64)
    starts = np.array([to_microseconds(window.start) for window in windows], np.int64)
    total = np.vstack([np.zeros((1, counts.shape[1]), counts.dtype), np.cumsum(counts, axis=0)])
    first = np.searchsorted(ends, starts - REACH // timedelta(microseconds=1), side="left")
    index = np.arange(len(windows))
    return total[index] - total[np.minimum(first, index)]
