"""Drift of columns: what a measuring tool answers, and what is said of columns that no tool can be asked about."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.normalise import Frame, Kind

_KEPT_CATEGORIES = 50
_STANDARD_ERRORS = 4
_LOST = "change of the share of missing values"


@lazy_dataclass(frozen=True)
class Score:
    """The verdict on one column. `score` and `threshold` mean what `method` says: a distance, or a p-value.

    A `broken` column is gone, of another kind, or has many more values missing. It is an alarm by itself, whatever the
    others do.
    """

    column: str
    verdict: str
    drifted: bool
    compared: bool = True
    method: str = ""
    score: float | None = None
    threshold: float | None = None
    broken: bool = False


class ToolReport(Protocol):
    """A tool's own report on a comparison, for people to look at."""

    def path(self, *, folder: str, name: str) -> Path:
        """The file that :meth:`save` will write, known before so that a record can name it."""
        ...

    def save(self, *, folder: str, name: str, record: Mapping[str, Any]) -> Path:
        """Write the report, and `record` beside it."""
        ...


@lazy_dataclass(frozen=True)
class Comparison:
    """The verdict on every column, worst first, and the tool's report where it makes one."""

    columns: list[Score]
    report: ToolReport | None = None

    @property
    def drifted(self) -> list[str]:
        """Names of the columns that drifted."""
        return [c.column for c in self.columns if c.drifted]

    @property
    def broken(self) -> list[Score]:
        """The columns that are no longer what they were."""
        return [c for c in self.columns if c.broken]

    @property
    def compared(self) -> list[str]:
        """Names of the columns that were compared."""
        return [c.column for c in self.columns if c.compared]

    @property
    def share(self) -> float:
        """Drifted columns of those compared."""
        return len(self.drifted) / len(self.compared) if self.compared else 0.0


@runtime_checkable
class Measures(Protocol):
    """A resource of a measuring tool, as :func:`drift_check` calls it: Evidently, NannyML, river, …

    Larger frames are sampled to `max_rows` with `seed`.
    """

    max_rows: int
    seed: int

    def scores(self, reference: Frame, current: Frame, options: Mapping[str, Any], *, name: str) -> Comparison:
        """Compare two frames in the columns of `kinds`, each of one kind on both sides: ``number`` or ``category``.

        Their data has the other columns as well. Neither side of a column is empty; missing values are NaN or None.
        `name` tells this comparison from others.

        Raises:
            MonitoringError: an option is not valid.
        """
        ...


def compare(
    current: Frame,
    reference: Frame,
    measure: Measures,
    *,
    columns: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    missing_change: float = 0.1,
    name: str = "",
) -> Comparison:
    """Compare column by column with the measure's methods.

    A column that changed its kind, went missing or empty in the current data, or misses more of its values by the share
    `missing_change`, is broken, and no tool is asked about it. A column that only one side has counts when `columns`
    names it. Dates, columns empty in the reference, and identifiers (nearly every value its own) are not compared.

    Raises:
        MonitoringError: neither side has a column that `columns` names, or an option is not valid.
    """
    names = list(dict.fromkeys([*reference.kinds, *current.kinds]) if columns is None else columns)
    if nowhere := [column for column in names if column not in {*reference.kinds, *current.kinds}]:
        columns_there = ", ".join(sorted({*reference.kinds, *current.kinds}))
        raise MonitoringError(f"neither side has a column {', '.join(map(repr, nowhere))}; there are {columns_there}.")
    required = columns is not None
    verdicts = {
        column: _structure(column, current, reference, required=required)
        or _lost(column, current, reference, missing_change)
        for column in names
    }
    comparable = [column for column, verdict in verdicts.items() if verdict is None]
    answer = Comparison([])
    if comparable:
        left, right = _within_reach(*_fold_rare(comparable, reference, current))
        answer = measure.scores(left, right, options or {}, name=name)
    scores = [*answer.columns, *(verdict for verdict in verdicts.values() if verdict is not None)]
    return Comparison(sorted(scores, key=_worst_first), answer.report)


def _worst_first(column: Score) -> tuple[bool, bool, bool, float]:
    """Broken before drifted before stable, then by how far the score is beyond its threshold, either way."""
    if column.score is None or not column.threshold:
        return not column.broken, not column.drifted, not column.compared, -1.0
    ratio = column.score / column.threshold
    beyond = -ratio if "p_value" in column.method else ratio
    return not column.broken, not column.drifted, not column.compared, -beyond


def _structure(name: str, current: Frame, reference: Frame, *, required: bool) -> Score | None:
    """The verdict on a column that no tool can be asked about, else None."""
    kind, earlier_kind = current.kinds.get(name), reference.kinds.get(name)
    if kind is None or earlier_kind is None:
        where = "the current data" if kind is None else "the reference"
        return Score(name, f"missing in {where}", drifted=required, compared=required, broken=required)
    if earlier_kind == "empty":
        return Score(name, "empty in the reference: not compared", drifted=False, compared=False)
    if kind == "empty":
        return Score(name, "empty in the current data", drifted=True, broken=True)
    if kind != earlier_kind:
        return Score(name, f"was {earlier_kind}, is {kind}", drifted=True, broken=True)
    if kind == "date":
        return Score(name, "dates: not compared", drifted=False, compared=False)
    values = reference.data[name].dropna()
    if kind == "category" and len(values) >= 20 and values.nunique() > 0.9 * len(values):
        return Score(name, "identifier: not compared", drifted=False, compared=False)
    return None


def _lost(name: str, current: Frame, reference: Frame, most: float) -> Score | None:
    """The verdict on a column whose share of values that are missing, infinite or of another kind has changed."""
    current_share, reference_share = (float(frame.data[name].isna().mean()) for frame in (current, reference))
    change = abs(current_share - reference_share)
    rows = [len(frame.data) for frame in (current, reference)]
    pooled = (current_share * rows[0] + reference_share * rows[1]) / sum(rows)
    # Of two samples of one distribution, no more than one in ten thousand differs by as many standard errors.
    by_chance = _STANDARD_ERRORS * math.sqrt(pooled * (1 - pooled) * sum(1 / count for count in rows))
    if change <= max(most, by_chance):
        return None
    verdict = f"{current_share:.0%} missing or malformed, {reference_share:.0%} in the reference"
    # Fewer than before is a change that a model may not know, and no fault.
    is_more = current_share > reference_share
    return Score(
        name, verdict, drifted=True, broken=is_more, score=change, threshold=max(most, by_chance), method=_LOST
    )


def _within_reach(reference: Frame, current: Frame) -> tuple[Frame, Frame]:
    """Numbers no farther from the middle 98 % of the reference than it is wide.

    Distances count values by bins of equal width: one value of 1e9 leaves all others in a single bin.
    """
    left, right = reference.data.copy(), current.data.copy()
    for name, kind in reference.kinds.items():
        if kind == "number":
            low, high = reference.data[name].quantile([0.01, 0.99])
            reach = high - low
            if reach > 0:
                for side in (left, right):
                    side[name] = side[name].clip(low - reach, high + reach)
    return Frame(left, reference.kinds), Frame(right, current.kinds)


def _fold_rare(names: list[str], reference: Frame, current: Frame) -> tuple[Frame, Frame]:
    """Beyond the reference's 50 commonest, categories are one: distances between long tails are mostly noise."""
    kinds: dict[str, Kind] = {name: reference.kinds[name] for name in names}
    left: Any = reference.data.copy()
    right: Any = current.data.copy()
    for name, kind in kinds.items():
        if kind == "category" and left[name].nunique() > _KEPT_CATEGORIES:
            common = left[name].value_counts().index[:_KEPT_CATEGORIES]
            for side in (left, right):
                side[name] = side[name].where(side[name].isin(common) | side[name].isna(), "(other)")
    return Frame(left, kinds), Frame(right, kinds)
