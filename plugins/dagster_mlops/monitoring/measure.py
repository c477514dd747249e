"""Drift of columns: what a measuring tool answers, and what is said of columns that no tool can be asked about."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.monitoring.normalise import Frame, Kind

_KEPT_CATEGORIES = 50


@lazy_dataclass(frozen=True)
class Score:
    """The verdict on one column. `score` and `threshold` mean what `method` says: a distance, or a p-value."""

    column: str
    verdict: str
    drifted: bool
    compared: bool = True
    method: str = ""
    score: float | None = None
    threshold: float | None = None


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
        """Compare two frames with the same columns, each of one kind on both sides: ``number`` or ``category``.

        Neither side of a column is empty; missing values are NaN or None. `name` tells this comparison from others.

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
    name: str = "",
) -> Comparison:
    """Compare column by column with the measure's methods.

    A column that changed its kind, or went missing or empty in the current data, is drifted without asking the tool,
    which would crash on it. A column that only one side has counts when `columns` names it. Dates, columns empty in the
    reference, and identifiers (nearly every value its own) are not compared.
    """
    names = list(dict.fromkeys([*reference.kinds, *current.kinds]) if columns is None else columns)
    verdicts = {column: _structure(column, current, reference, required=columns is not None) for column in names}
    comparable = [column for column, verdict in verdicts.items() if verdict is None]
    answer = Comparison([])
    if comparable:
        left, right = _fold_rare(comparable, reference, current)
        answer = measure.scores(left, right, options or {}, name=name)
    scores = [*answer.columns, *(verdict for verdict in verdicts.values() if verdict is not None)]
    return Comparison(sorted(scores, key=_worst_first), answer.report)


def _worst_first(column: Score) -> tuple[bool, bool, float]:
    """Drifted before stable, then by how far the score is beyond its threshold (whichever way the method counts)."""
    if column.score is None or not column.threshold:
        return not column.drifted, not column.compared, -1.0
    ratio = column.score / column.threshold
    return not column.drifted, not column.compared, ratio if "p_value" in column.method else -ratio


def _structure(name: str, current: Frame, reference: Frame, *, required: bool) -> Score | None:
    """The verdict on a column that no tool can be asked about, else None."""
    kind, earlier_kind = current.kinds.get(name), reference.kinds.get(name)
    if kind is None or earlier_kind is None:
        where = "both" if kind is earlier_kind else "the current data" if kind is None else "the reference"
        return Score(name, f"missing in {where}", drifted=required, compared=required)
    if earlier_kind == "empty":
        return Score(name, "empty in the reference: not compared", drifted=False, compared=False)
    if kind == "empty":
        return Score(name, "empty in the current data", drifted=True)
    if kind != earlier_kind:
        return Score(name, f"was {earlier_kind}, is {kind}", drifted=True)
    if kind == "date":
        return Score(name, "dates: not compared", drifted=False, compared=False)
    values = reference.data[name].dropna()
    if kind == "category" and len(values) >= 20 and values.nunique() > 0.9 * len(values):
        return Score(name, "identifier: not compared", drifted=False, compared=False)
    return None


def _fold_rare(names: list[str], reference: Frame, current: Frame) -> tuple[Frame, Frame]:
    """Beyond the reference's 50 commonest, categories are one: distances between long tails are mostly noise."""
    kinds: dict[str, Kind] = {name: reference.kinds[name] for name in names}
    left: Any = reference.data[names].copy()
    right: Any = current.data[names].copy()
    for name, kind in kinds.items():
        if kind == "category" and left[name].nunique() > _KEPT_CATEGORIES:
            common = left[name].value_counts().index[:_KEPT_CATEGORIES]
            for side in (left, right):
                side[name] = side[name].where(side[name].isin(common) | side[name].isna(), "(other)")
    return Frame(left, kinds), Frame(right, kinds)
