"""Values that a column of numbers is known to take: what lies within its range, and is still new."""

import functools
from collections.abc import Sequence
from typing import Any

from dagster_mlops.core.arrays import np
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.monitoring.windows.counts import pack, unpack
from dagster_mlops.monitoring.windows.numbers import ABOVE, CELLS, GRID, SPECIAL, UNSEEN, NumberColumn
from dagster_mlops.monitoring.windows.values import Values

KNOWN, ONCE, NEW, ONCE_BEYOND, BEYOND = range(SPECIAL, SPECIAL + 5)
"""Bins: values of several spans of the reference, of one of them, and of none; the last two also beyond the range of
all spans but one."""
_SPANS = 26
_COVERED = 0.5  # share of the range's cells that a column may fill, to be one of distinct values
_NOVELTY = 0.03  # share of the rows whose value occurs in one span of the reference only
_FEW = 100
_CLOSE = 1e-3  # of a cell: numbers that differ by rounding lie in the same one


@lazy_dataclass(frozen=True)
class KnownColumn:
    """Values of a column of numbers by whether the reference has them.

    Sensors, prices, counts and clocks give few distinct values: a wind in knots has 35 a year. Another unit, another
    column's values or another rounding give values between them, also where each lies within the usual range. A column
    that fills its range is asked for the range only.

    Args:
        target: The column.
        bins: The bin of each cell of the target's grid, packed.
    """

    name: str
    target: str
    bins: str
    kind: str = "values"
    size: int = SPECIAL + 5

    def tally(self, cells: "np.ndarray", by_cell: "np.ndarray | None" = None) -> "np.ndarray":
        """Values by bin; from the number of them in each cell, where it is known."""
        if by_cell is None:
            return np.bincount(self.codes_of(cells), minlength=self.size)
        return np.bincount(self._bin_of_cell, weights=by_cell, minlength=self.size).astype(np.int64)

    def codes_of(self, cells: "np.ndarray") -> "np.ndarray":
        """The bin of each cell of the target."""
        return self._bin_of_cell[cells]

    @functools.cached_property
    def _bin_of_cell(self) -> "np.ndarray":
        table = np.zeros(CELLS, np.int64)
        table[:SPECIAL], table[SPECIAL - 1], table[-1] = range(SPECIAL), UNSEEN, ABOVE
        table[SPECIAL : SPECIAL + GRID] = unpack(self.bins, "uint8", (GRID,))
        return table

    def labels(self) -> list[str]:
        """Texts of the bins after the first four."""
        return ["known", "known once", "new", "known once, beyond the range", "beyond the range"]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"name": self.name, "kind": self.kind, "target": self.target, "bins": self.bins}


def known_column(column: NumberColumn, cells: "np.ndarray", reference: Sequence[Values]) -> KnownColumn:
    """The values of a column in spans of consecutive rows.

    A value that occurs in one span only would be new if this span were not in the reference: so many are to be expected
    of rows that come later.

    Args:
        column: Bins of the column.
        cells: The cells of the reference's values …
        reference: … and the values, in order of time.
    """
    near = [NumberColumn("", column.low + shift * column.unit, column.unit, ()) for shift in (-_CLOSE, _CLOSE)]
    parts = [cells, *(np.concatenate([other.cells(values) for values in reference]) for other in near)]
    occurs = []
    for rows in np.array_split(np.arange(len(cells)), _SPANS):
        here = slice(rows[0], rows[-1] + 1) if len(rows) else slice(0)
        counts = np.bincount(np.concatenate([part[here] for part in parts]), minlength=CELLS)[SPECIAL : SPECIAL + GRID]
        if counts.any():
            occurs.append(counts > 0)
    bins = np.full(GRID, BEYOND, np.uint8)
    if not occurs:
        return KnownColumn(f"values of {column.name}", column.name, pack(bins))
    spans = np.sum(occurs, axis=0)
    lows, highs = (sorted(int(np.argmax(part[::step])) for part in occurs) for step in (1, -1))
    low, high = lows[0], GRID - 1 - highs[0]
    on_grid = cells[(cells >= SPECIAL) & (cells < SPECIAL + GRID)] - SPECIAL
    fills = high > low + _FEW and (spans > 0).sum() > _COVERED * (high - low + 1)
    if fills or (spans[on_grid] < 2).mean() > _NOVELTY:
        spans[low : high + 1] = 2
    bins[spans > 0] = ONCE_BEYOND
    inside = slice(lows[:2][-1], GRID - highs[:2][-1])  # the range of all spans but one
    bins[inside] = np.array([NEW, ONCE, KNOWN])[np.minimum(spans[inside], 2)]
    return KnownColumn(f"values of {column.name}", column.name, pack(bins))
