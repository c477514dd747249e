"""One scale for all scores: steps from the median to the 95 % quantile of a history."""

from collections.abc import Sequence

from dagster_mlops.core.arrays import np
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.monitoring.detection.scores import Name, Raw

# The same steps of pure sampling error; where a history is steadier than that, it is so by chance.
_FLOORS = {"distribution": 0.3, "mean": 1.0, "spread": 1.0}
# Any column may have a record week next, and few have had one: all are measured by the one that varies most.
_SHARED = ("new", "out of range")
_STRUCTURAL_FLOOR = 1.25  # one record of a source that fails is a dozen rows of a window


@lazy_dataclass(frozen=True, eq=False)
class Scale:
    """The natural size of each score.

    Args:
        natural: Squared distances that are natural, beside the sampling error of the rows.
        middle: Medians.
        step: From the median to the 95 % quantile.
    """

    natural: "np.ndarray"
    middle: "np.ndarray"
    step: "np.ndarray"

    @classmethod
    def learn(cls, raw: Raw, names: Sequence[Name]) -> "Scale":
        """The scale of windows of a history."""
        natural = np.maximum(np.median(raw.squares - raw.noise, axis=0), 0)
        levels = np.sort(_levels(raw, natural), axis=0)
        middle, high = np.quantile(levels, [0.5, 0.95], axis=0)
        floors = np.array([_FLOORS.get(name.what, _STRUCTURAL_FLOOR) for name in names])
        top = levels[-max(len(levels) // 20, 1) :]
        excess = (top - high).mean(axis=0)
        most = (levels[-1] - middle) / np.log(max(len(levels) / 2, 3))
        step = np.max([high - middle, 2.3 * excess, 0.8 * 2.3 * most, floors], axis=0)
        for what in _SHARED:
            columns = np.array([name.what == what for name in names], bool)
            step[columns] = step[columns].max(initial=0)
        return cls(natural, middle, step)

    def z(self, raw: Raw) -> "np.ndarray":
        """Scores on one scale."""
        return (_levels(raw, self.natural) - self.middle) / self.step


def _levels(raw: Raw, natural: "np.ndarray") -> "np.ndarray":
    return np.hstack([np.sqrt(raw.squares / (natural + raw.noise)), raw.plain])
