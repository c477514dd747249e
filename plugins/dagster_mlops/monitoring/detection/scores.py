"""Distances of windows from what was to be expected: raw scores of all columns, not yet on one scale."""

from typing import NamedTuple

from dagster_mlops.core.arrays import np
from dagster_mlops.monitoring.detection.judgement import What
from dagster_mlops.monitoring.detection.rows import Rows
from dagster_mlops.monitoring.windows.columns import CategoryColumn
from dagster_mlops.monitoring.windows.known import BEYOND, NEW, ONCE, ONCE_BEYOND, KnownColumn
from dagster_mlops.monitoring.windows.numbers import ABOVE, SPECIAL, UNSEEN, NumberColumn, RelationColumn
from dagster_mlops.monitoring.windows.profile import Profile

_LEAST = 10  # numbers of which a mean or a spread is compared, rows of which most can be wrong
_MOST = 0.8  # share of rows
_LEAST_OVERLAP = 1e-3
_STRUCTURAL: dict[bool, tuple[What, ...]] = {
    True: ("missing", "malformed", "far below", "far above"),
    False: ("missing", "malformed", "unseen", "far above"),
}


_NEW: dict[What, tuple[int, int]] = {"new": (NEW, ONCE), "out of range": (BEYOND, ONCE_BEYOND)}
_ON_GRID = NumberColumn | RelationColumn


class Name(NamedTuple):
    """A score: the position of its column in the profile, and what it looks at."""

    column: int
    what: What


class Raw(NamedTuple):
    """Raw scores of windows: `squares` are to be divided by what is natural plus `noise`, the sampling error.

    Distances are squared: overlap of distributions, squared steps. `plain` scores are on their scale already. `broken`
    says of each score that most of the rows are wrong, whatever the history holds.
    """

    squares: "np.ndarray"
    noise: "np.ndarray"
    plain: "np.ndarray"
    values: "np.ndarray"
    expected: "np.ndarray"
    broken: "np.ndarray"


def _angle(count: "np.ndarray", rows: "np.ndarray") -> "np.ndarray":
    """A share as an angle, which has the same sampling error everywhere."""
    return np.arcsin(np.sqrt(np.clip((count + 0.375) / (rows + 0.75), 0, 1)))


class Scorer:
    """The scores of a profile's columns.

    * ``distribution``: distance of the window's bins from those of its hours of the week, by their overlap
      (Bhattacharyya, 1946, https://www.jstor.org/stable/25047882): it has no upper limit near which all large changes
      look alike.
    * ``mean``, ``spread``: the window's mean and logarithm of the standard deviation, less what these hours lead to
      expect, against the same of the three days before; it sees faults of columns that vary slowly, such as weather.
    * ``missing``, ``malformed``, ``unseen``, ``far below``, ``far above``: the number of such values against the
      expected one, as angles whose sine is the root of the share: they have the same sampling error everywhere
      (Anscombe, 1948, https://doi.org/10.1093/biomet/35.3-4.246).
    * ``relation``: the same of rows that other columns do not explain; ``new``, ``out of range``: of values that the
      reference has not, between or beyond those that it has.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile, columns = profile, profile.columns
        self.starts = np.array(profile.starts)
        self.distributions = sum(not isinstance(column, KnownColumn) for column in columns)
        self.numbers = np.array([i for i, column in enumerate(columns) if isinstance(column, _ON_GRID)], int)
        self.names = [
            *(Name(i, "distribution") for i in range(self.distributions)),
            *(Name(int(i), "mean") for i in self.numbers),
            *(Name(int(i), "spread") for i in self.numbers),
        ]
        self.squared = len(self.names)
        self._special: list[list[int]] = []
        place = {column.name: i for i, column in enumerate(columns)}
        for i, column in enumerate(columns):
            if isinstance(column, KnownColumn):
                for what, bins in _NEW.items():
                    self.names.append(Name(place[column.target], what))
                    self._special.append([self.starts[i] + j for j in bins])
                continue
            if isinstance(column, RelationColumn):
                self.names.append(Name(i, "relation"))  # what it lacks is missing in its columns
                last = self.starts[i] + column.size - 1
                self._special.append([self.starts[i] + j for j in (UNSEEN, ABOVE, SPECIAL)] + [last])
                continue
            for j, what in enumerate(_STRUCTURAL[column.kind in ("number", "date")]):
                if j < 3 or column.kind in ("number", "date"):
                    self.names.append(Name(i, what))
                    self._special.append([self.starts[i] + j])
        novelty = [
            column.novelty if isinstance(column, CategoryColumn) and name.what == "unseen" else 0.0
            for name in self.names[self.squared :]
            for column in [columns[name.column]]
        ]
        self._novelty = np.array(novelty)
        self._relation = np.array([name.what == "relation" for name in self.names[self.squared :]], bool)
        self._new = np.array([name.what in _NEW for name in self.names[self.squared :]], bool)
        self._once = np.array([bins[-1] for bins in self._special])
        self._wrong = np.zeros((self.distributions, profile.size))
        for i, (column, start) in enumerate(zip(columns, profile.starts, strict=True)):
            if not isinstance(column, RelationColumn | KnownColumn):
                self._wrong[i, start : start + SPECIAL] = 1

    def raw(self, windows: Rows, season: "np.ndarray", *, own: bool = False) -> Raw:
        """The raw scores of windows against expected counts of a row by hour of the week.

        Args:
            own: The windows are the reference's own, so that a value which occurs in them alone is new.
        """
        size, n = self.profile.size, np.maximum(windows.rows, 1)[:, None].astype(float)
        expected = windows.hours @ season
        share, share_expected = windows.counts[:, :size] / n, expected[:, :size]
        divergence, moved = self._divergence(share, share_expected)
        filled = np.add.reduceat((share_expected > 1e-3).astype(float), self.starts, axis=1)
        distance_noise = (np.maximum(filled - 1, 1) / (8 * n))[:, : self.distributions]
        mean, spread, mean_noise, spread_noise, values, values_expected = self._steps(windows, expected, season)
        special = np.stack([windows.counts[:, bins].sum(axis=1) for bins in self._special], axis=1)
        if not own:
            special = special - windows.counts[:, self._once] * self._new
        chance = np.stack([share_expected[:, bins].sum(axis=1) for bins in self._special], axis=1) + self._novelty
        plain = 2 * np.sqrt(n + 0.5) * (_angle(special, n) - _angle(n * chance, n))
        enough = windows.rows[:, None] >= _LEAST
        broken = np.zeros((len(n), len(self.names)), bool)
        wrong = (share - share_expected) @ self._wrong.T >= _MOST
        broken[:, : wrong.shape[1]] = wrong & enough
        broken[:, self.squared :] = (special / n - chance >= _MOST) & enough & ~self._relation & ~self._new
        return Raw(
            np.hstack([divergence, mean, spread]),
            np.hstack([distance_noise, mean_noise, spread_noise]),
            plain,
            np.hstack([moved, values, special / n]),
            np.hstack([np.zeros_like(moved), values_expected, chance]),
            broken,
        )

    def _divergence(self, p: "np.ndarray", q: "np.ndarray") -> tuple["np.ndarray", "np.ndarray"]:
        """Bhattacharyya distance by column, and the share of rows that would have to move."""
        overlap = np.add.reduceat(np.sqrt(p * np.maximum(q, 0)), self.starts, axis=1)[:, : self.distributions]
        moved = np.add.reduceat(np.abs(p - q), self.starts, axis=1)[:, : self.distributions] / 2
        return -np.log(np.clip(overlap, _LEAST_OVERLAP, 1)), moved

    def _steps(self, windows: Rows, expected: "np.ndarray", season: "np.ndarray") -> tuple["np.ndarray", ...]:
        g, mean, variance = self._mean_and_variance(windows.counts, windows.rows)
        g_before, mean_before, variance_before = self._mean_and_variance(windows.before, windows.rows_before)
        _, usual, usual_variance = self._mean_and_variance(expected * 1e6, np.full(len(expected), 1e6))
        earlier = windows.hours_before @ season
        _, usual_before, usual_variance_before = self._mean_and_variance(earlier * 1e6, np.full(len(earlier), 1e6))
        _, _, overall = self._mean_and_variance(season.mean(axis=0, keepdims=True) * 1e6, np.full(1, 1e6))
        floor = 1e-4 * overall + 1.0  # a position is known to one cell
        sd = np.sqrt(overall + floor)
        step = ((mean - usual) - (mean_before - usual_before)) / sd
        widths = [np.log(v + floor) / 2 for v in (variance, usual_variance, variance_before, usual_variance_before)]
        widening = (widths[0] - widths[1]) - (widths[2] - widths[3])
        enough = (g >= _LEAST) & (g_before >= _LEAST) & (windows.rows_before[:, None] > 0)
        noise = 1 / np.maximum(g, 1) + 1 / np.maximum(g_before, 1)
        columns = [column for column in self.profile.columns if isinstance(column, _ON_GRID)]
        units = np.array([column.unit for column in columns])
        zero = np.array([column.value(0.0) for column in columns])
        foreseen = mean_before - usual_before + usual
        deviation = np.exp(widths[2] - widths[3] + widths[1])
        return (
            np.where(enough, step, 0) ** 2,
            np.where(enough, widening, 0) ** 2,
            noise,
            noise / 2,
            np.hstack([mean * units + zero, np.sqrt(variance) * units]),
            np.hstack([foreseen * units + zero, deviation * units]),
        )

    def _mean_and_variance(
        self, counts: "np.ndarray", rows: "np.ndarray"
    ) -> tuple["np.ndarray", "np.ndarray", "np.ndarray"]:
        """Number of values on the grid, mean and variance of their positions, for each column of numbers."""
        size, columns = self.profile.size, self.profile.columns
        on_grid = np.zeros((len(counts), len(self.numbers)))
        for place, i in enumerate(self.numbers):
            start = self.starts[i]
            on_grid[:, place] = counts[:, start + SPECIAL : start + columns[i].size].sum(axis=1)
        safe = np.maximum(on_grid, 1e-9)
        mean = counts[:, size + 2 * self.numbers] / safe
        mean = np.where(on_grid > 0, mean, 0)
        square = np.where(on_grid > 0, counts[:, size + 2 * self.numbers + 1] / safe, 0)
        return on_grid, mean, np.maximum(square - mean**2, 0)
