"""The score that is exceeded as often as was asked for, from the declustered peaks of a history."""

import math
from typing import NamedTuple

from dagster_mlops.core.arrays import np

_CLUSTERS = 10


class Peaks(NamedTuple):
    """Scores of consecutive windows, with their times."""

    starts: "np.ndarray"  # days
    scores: "np.ndarray"
    quiet: float  # days without an exceedance, after which the next one is an incident of its own

    def incidents(self, threshold: float) -> "np.ndarray":
        """The highest score of each incident: exceedances that follow each other within `quiet` days."""
        over = np.flatnonzero(self.scores >= threshold)
        if not len(over):
            return np.zeros(0)
        new = np.diff(self.starts[over], prepend=-math.inf) > self.quiet
        return np.maximum.reduceat(self.scores[over], np.flatnonzero(new))


def threshold_for(peaks: Peaks, expected: float, *, widen: float = 0.0) -> tuple[float, int]:
    """The threshold over which `expected` incidents lie in a history as long as this one, and the peaks it rests on.

    Peaks over a lower level are declustered; over that level they fall off exponentially (peaks over threshold:
    Davison and Smith, 1990, https://doi.org/10.1111/j.2517-6161.1990.tb01796.x), so that rates which the history is
    too short to show are extrapolated.

    Args:
        peaks: The history.
        expected: Number of incidents, above 0; may be less than one.
        widen: Standard errors of the slope that are added, for short histories.
    """
    level, tops = _level(peaks, max(_CLUSTERS, math.ceil(1.5 * expected)))
    if not len(tops):
        return level, 0
    # The peak of rank r is exceeded r - 1/2 times: a line through all pairs, which no single peak can bend
    # (Theil and Sen, https://doi.org/10.1080/01621459.1968.10480934).
    heights = np.sort(tops)[::-1]
    log_counts = np.log(np.arange(len(heights)) + 0.5)
    first, second = np.triu_indices(len(heights), 1)
    slopes = (heights[first] - heights[second]) / (log_counts[second] - log_counts[first])
    slope = float(np.median(slopes)) if len(slopes) else 0.0
    at_one = float(np.median(heights + slope * log_counts))
    beyond = max(math.log(len(heights) / expected), 0.0)
    return max(at_one - slope * math.log(expected), level) + widen * slope * beyond / math.sqrt(len(heights)), len(tops)


def _level(peaks: Peaks, wish: int) -> tuple[float, "np.ndarray"]:
    """The highest level over which there are `wish` incidents, or else the one with the most, and their heights."""
    best = (float(np.median(peaks.scores)), np.zeros(0))
    for level in np.unique(peaks.scores)[::-1]:
        tops = peaks.incidents(level)
        if len(tops) > len(best[1]):
            best = (float(level), tops)
        if len(tops) >= wish:
            break
        if level <= np.median(peaks.scores):
            break
    return best
