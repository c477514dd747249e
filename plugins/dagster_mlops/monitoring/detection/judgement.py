"""The verdict on a window: one score, one threshold, and the columns that it comes from."""

from typing import Any, Literal

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.metadata import shorten
from dagster_mlops.core.terminal import line

_LONG = 80  # characters of a column's name
What = Literal[
    "distribution",
    "mean",
    "spread",
    "missing",
    "malformed",
    "unseen",
    "far below",
    "far above",
    "relation",
    "new",
    "out of range",
]
PLAIN: frozenset[What] = frozenset(("missing", "malformed", "unseen", "far below", "far above"))
"""Findings that are reported before others of their column: they say what is wrong, and change the others."""


@lazy_dataclass(frozen=True)
class ColumnScore:
    """A column of a window, and how unusual it is.

    Args:
        column: Name.
        what: ``distribution``: the share of rows that would have to move to another bin for the distribution to be the
            expected one; ``mean`` and ``spread``: a step against the three days before, in the column's own unit;
            ``missing``, ``malformed``, ``unseen``, ``far below``, ``far above``: the share of such values;
            ``relation``: the share of rows in which a column is far from what others lead to expect; ``new``, ``out of
            range``: the share of values that the reference has not, between and beyond those that it has.
        z: How unusual the column is at most, in steps from the median to the 95 % quantile of the history.
        value: Value of the window.
        expected: Value that was to be expected at these hours of the week.
    """

    column: str
    what: What
    z: float
    value: float
    expected: float

    def text(self) -> str:
        """The finding in words.

        >>> ColumnScore("wind", "missing", 9.5, 0.31, 0.02).text()
        'wind: 31.0 % missing, 2.0 % expected'
        """
        name = shorten(line(self.column), _LONG)
        if self.what in ("mean", "spread"):
            return f"{name}: {self.what} {self.value:.6g}, {self.expected:.6g} expected"
        if self.what == "distribution":
            return f"{name}: {100 * self.value:.1f} % of rows distributed differently"
        what = {"relation": "of rows unusual", "new": "new values"}.get(self.what, self.what)
        return f"{name}: {100 * self.value:.1f} % {what}, {100 * self.expected:.1f} % expected"


@lazy_dataclass(frozen=True)
class Judgement:
    """The verdict on a window.

    Args:
        score: Largest score of all columns.
        threshold: Score from which a window is an alarm.
        undecided: Why the window was not judged; empty if it was.
        columns: A finding of each column: one of :data:`PLAIN` that is an alarm by itself, else the most unusual. The
            first are those with plain ones, worst first.
    """

    score: float
    threshold: float
    undecided: str
    columns: tuple[ColumnScore, ...]

    @property
    def alarm(self) -> bool:
        """True if the score is at or over the threshold."""
        return not self.undecided and self.score >= self.threshold

    @property
    def alarming(self) -> tuple[ColumnScore, ...]:
        """The columns at or over the threshold, worst first."""
        return tuple(entry for entry in self.columns if entry.z >= self.threshold) if self.alarm else ()

    def text(self) -> str:
        """The verdict in a line."""
        if self.undecided:
            return f"Undecided: {self.undecided}"
        score = f"score {self.score:.2f}, alarm from {self.threshold:.2f}"
        return f"{'; '.join(entry.text() for entry in self.alarming[:6])} ({score})" if self.alarm else f"ok ({score})"

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        columns = [
            {"column": c.column, "what": c.what, "z": c.z, "value": c.value, "expected": c.expected}
            for c in self.columns
        ]
        return {
            "alarm": self.alarm,
            "score": self.score,
            "threshold": self.threshold,
            "undecided": self.undecided,
            "columns": columns,
        }
