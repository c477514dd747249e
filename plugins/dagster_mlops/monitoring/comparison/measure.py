"""The questions to a measuring tool about two frames, and its answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.monitoring.normalise import Frame


@lazy_dataclass(frozen=True)
class Score:
    """The verdict on one column. `score` and `threshold` mean what `method` says: a distance, or a p-value.

    A `broken` column is gone, of another kind, has many more values missing, or is of values that the reference never
    had. It is an alarm by itself, whatever the others do.
    """

    column: str
    verdict: str
    drifted: bool
    compared: bool = True
    method: str = ""
    score: float | None = None
    threshold: float | None = None
    broken: bool = False

    @property
    def beyond(self) -> float:
        """The score of a distance as a multiple of its threshold; 0 for a p-value, and where either is lacking."""
        if self.score is None or not self.threshold or "p_value" in self.method:
            return 0.0
        return self.score / self.threshold


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
        return self.weighted_share({})

    def weighted_share(self, importance: Mapping[str, float]) -> float:
        """The importance (1 for columns that have no other) of the drifted columns, of that of all compared ones."""
        weights = {name: importance.get(name, 1.0) for name in self.compared}
        total = sum(weights.values())
        return sum(weights.get(name, 0.0) for name in self.drifted) / total if total else 0.0


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
