"""Bins of a column of numbers on a grid of whole cells, and of how it hangs together with others."""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from dagster_mlops.core.arrays import np
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.monitoring.windows.readings import numbers
from dagster_mlops.monitoring.windows.values import Values, plain

MISSING, MALFORMED, UNSEEN, ABOVE = range(4)
"""The first bins of every column. `UNSEEN` is a category that the reference has not, or a number far below its range;
`ABOVE` a number far above it."""
SPECIAL = 4
GRID = 16_384
"""Cells of the grid of a column of numbers."""
_CENTRE = SPECIAL + GRID // 2
_BELOW, _OVER = SPECIAL - 1, SPECIAL + GRID  # cells of what is off the grid
CELLS = _OVER + 1
"""Number of cells: the grid's and what is off it."""
MANY = 8192
"""Rows from which on it is quicker to count by cell, and then by bin."""


class Codes(NamedTuple):
    """The bin of each value, and its position on the grid (0 in the centre, and for what is not on the grid)."""

    bins: "np.ndarray"
    positions: "np.ndarray | None" = None


@lazy_dataclass(frozen=True)
class NumberColumn:
    """Numbers on a grid of 16,384 cells of width `unit` from `low` on; `edges` are the first cells of the bins but one.

    The sums of a window are those of cells, hence whole numbers. Outside of the grid a value is far out of range: it
    has a bin, and no part in the sums, so that one outlier hides nothing.
    """

    name: str
    low: int | float
    unit: float
    edges: tuple[int, ...]
    kind: str = "number"

    @property
    def size(self) -> int:
        """Number of bins."""
        return SPECIAL + len(self.edges) + 1

    def codes(self, values: Values) -> Codes:
        """The bin and the position of each value."""
        return self.codes_of(self.cells(values))

    def codes_of(self, cells: "np.ndarray") -> Codes:
        """The bin and the position of each cell."""
        return Codes(self._bin_of_cell[cells], self.positions(cells))

    def positions(self, cells: "np.ndarray") -> "np.ndarray":
        """The position of each cell."""
        return np.where((cells >= SPECIAL) & (cells < _OVER), cells - _CENTRE, 0)

    def tally(self, cells: "np.ndarray", by_cell: "np.ndarray | None" = None) -> tuple["np.ndarray", int, int]:
        """Values by bin, the sum of their positions, and that of the squares of these.

        Args:
            cells: The cell of each value.
            by_cell: The number of values in each cell, where it is known.
        """
        if by_cell is None:
            codes = self.codes_of(cells)
            assert codes.positions is not None
            bins = np.bincount(codes.bins, minlength=self.size)
            return bins, int(codes.positions.sum()), int(np.dot(codes.positions, codes.positions))
        on_grid, places = by_cell[SPECIAL:_OVER], np.arange(SPECIAL, _OVER) - _CENTRE
        bins = np.bincount(self._bin_of_cell, weights=by_cell, minlength=self.size).astype(np.int64)
        return bins, int(np.dot(on_grid, places)), int(np.dot(on_grid, places * places))

    def cells(self, values: Values) -> "np.ndarray":
        """The cell of each value: 0 and 1 for missing and malformed ones, the grid's from 4 on."""
        column = numbers(plain(values))
        if column.values.dtype == np.int64 and isinstance(self.low, int):  # exact, also beyond 2^53
            reach = math.ceil(self.unit * GRID) + 2
            least, most = (min(max(end, -(2**63)), 2**63 - 1) for end in (self.low - 2, self.low + reach))
            x = (np.clip(column.values, least, most).astype(np.uint64) - np.uint64(least % 2**64)).astype(np.float64)
            cells = self.cells_of((x + (least - self.low)) / self.unit)
        else:  # divided before it is subtracted from: the difference of two finite numbers may be infinite
            with np.errstate(over="ignore", invalid="ignore"):
                x = column.values * (1 / self.unit)
                x -= float(self.low) / self.unit
            cells = self.cells_of(x)
            if column.values.dtype != np.int64 and len(cells) and (cells.max() == _OVER or (cells == _BELOW).any()):
                cells[np.isinf(column.values)] = MALFORMED
        for mask, cell in ((column.malformed, MALFORMED), (column.missing, MISSING)):
            if mask is not None:
                cells[mask] = cell
        return cells

    def cells_of(self, x: "np.ndarray") -> "np.ndarray":
        """The cell of each distance from `low` in units; NaN is missing. The array is overwritten."""
        np.clip(x, -1.0, float(GRID), out=x)
        x += SPECIAL
        if math.isnan(x.sum()):
            x[np.isnan(x)] = MISSING
        return x.astype(np.int64)

    @functools.cached_property
    def _bin_of_cell(self) -> "np.ndarray":
        table = np.zeros(CELLS, np.int64)
        table[:SPECIAL], table[_BELOW], table[_OVER] = range(SPECIAL), UNSEEN, ABOVE
        table[SPECIAL:_OVER] = SPECIAL + np.searchsorted(self.edges, np.arange(GRID), side="right")
        return table

    def value(self, position: float) -> float:
        """The value at a position on the grid, in the column's own unit."""
        return float(self.low + self.unit * (position + GRID // 2 + 0.5))

    def labels(self) -> list[str]:
        """Texts of the bins after the first four."""
        if isinstance(self.low, int):
            ends = [str(self.low + math.ceil(self.unit * edge)) for edge in self.edges]
        else:
            ends = [f"{self.low + self.unit * edge:.6g}" for edge in self.edges]
        between = [f"{start} to {end}" for start, end in itertools.pairwise(ends)]
        return [f"below {ends[0]}", *between, f"from {ends[-1]}"] if ends else ["any"]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"name": self.name, "kind": self.kind, "low": self.low, "unit": self.unit, "edges": list(self.edges)}


@lazy_dataclass(frozen=True)
class RelationColumn:
    """A column of numbers less what others lead to expect: a column that varies slowly, such as the temperature, has
    errors that show at once beside dew point and humidity.

    Args:
        target: The column.
        inputs: The others, by name, with the weights of their positions.
        products: Weights of the products of two of them, or of the square of one.
        intercept: Position of the target where those of the inputs are 0.
        rest: Bins of the difference, in the target's own unit.
    """

    name: str
    target: str
    inputs: Mapping[str, float]
    intercept: float
    rest: NumberColumn
    products: tuple[tuple[str, str, float], ...] = ()
    kind: str = "relation"

    @property
    def size(self) -> int:
        """Number of bins."""
        return self.rest.size

    @property
    def unit(self) -> float:
        """Width of a cell."""
        return self.rest.unit

    def cells(self, columns: Mapping[str, NumberColumn], cells: Mapping[str, "np.ndarray"]) -> "np.ndarray":
        """The cell of each row's difference; missing where a value is not on the grid.

        Args:
            columns: The columns of numbers, by name.
            cells: Their cells.
        """
        difference = self.difference(columns, cells)
        return self.rest.cells_of((difference - self.rest.low) / self.rest.unit)

    def difference(self, columns: Mapping[str, NumberColumn], cells: Mapping[str, "np.ndarray"]) -> "np.ndarray":
        """The difference of each row; NaN where a value is not on the grid."""
        rest = np.full(len(cells[self.target]), -self.intercept)
        usable = np.ones(len(rest), bool)
        for name, weight in ((self.target, 1.0), *((name, -weight) for name, weight in self.inputs.items())):
            usable &= (cells[name] >= SPECIAL) & (cells[name] < _OVER)
            rest += weight * (cells[name] - _CENTRE)  # one after the other: the same to the last bit in any batch
        for first, second, weight in self.products:
            rest -= weight * ((cells[first] - _CENTRE) * (cells[second] - _CENTRE))
        rest *= columns[self.target].unit
        rest[~usable] = np.nan
        return rest

    def value(self, position: float) -> float:
        """The difference at a position on the grid."""
        return self.rest.value(position)

    def labels(self) -> list[str]:
        """Texts of the bins after the first four."""
        return self.rest.labels()

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        names = {"name": self.name, "kind": self.kind, "target": self.target, "inputs": dict(self.inputs)}
        products = [list(product) for product in self.products]
        return {**names, "products": products, "intercept": self.intercept, "rest": self.rest.to_dict()}
