"""River as a measure of drift: adaptive windows over the rows in their order."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dagster_mlops.core.extras import extra
from dagster_mlops.core.resources import ToolResource
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring import Comparison, Score
from dagster_mlops.monitoring.normalise import Frame

if TYPE_CHECKING:
    import pandas as pd

_CATEGORIES = 10  # the reference's commonest, each watched by a detector of its own
# The smallest shift that counts: ADWIN alone finds any shift, however small, when there are rows enough.
_SHIFTS = {"number_shift": 0.2, "share_shift": 0.05}


class RiverResource(ToolResource):
    """River in process: drift as the row from which on a column is not what it was.

        defs = dg.Definitions(
            asset_checks=[drift_check(asset="predictions", reference="training_set")],
            resources={"river": RiverResource()},
        )

    Each column of numbers, and the share of each common category, goes through river's own ``ADWIN`` (Bifet and
    Gavaldà 2007, doi:10.1137/1.9781611972771.42): first the reference in a random order, then the current rows in
    theirs. A change that it finds counts when the rows after it are shifted by 0.2 standard deviations of the
    reference, or by 5 points of a share.
    """

    max_rows: int = Field(default=100_000, gt=0, description="Rows that are read of a frame; larger ones are sampled.")
    seed: int = Field(default=0, description="Seed of the sample and of the reference's order.")

    def detector(self, **options: Any) -> Any:
        """River's own ``ADWIN``, fresh.

        Raises:
            MonitoringError: an option is not valid.
        """
        try:
            return extra("river.drift", extra="river").ADWIN(**options)
        except TypeError as error:
            raise MonitoringError(f"River's ADWIN does not take these options: {error}") from error

    def scores(self, reference: Frame, current: Frame, options: Mapping[str, Any], *, name: str) -> Comparison:
        """Drift of each column; see :class:`dagster_mlops.monitoring.Measures`."""
        shifts = {option: float(options.get(option, default)) for option, default in _SHIFTS.items()}
        adwin = {option: value for option, value in options.items() if option not in shifts}
        scores = []
        for column, kind in reference.kinds.items():
            left: Any = reference.data[column].dropna()
            right: Any = current.data[column].dropna()
            if kind == "number":
                threshold = shifts["number_shift"]
                mean, spread = left.mean(), left.std(ddof=0) or 1.0
                shift, row = self._shift((left - mean) / spread, (right - mean) / spread, adwin)
            else:
                threshold = shifts["share_shift"]
                common = [*left.value_counts().index[:_CATEGORIES], *right.value_counts().index[:_CATEGORIES]]
                each = [self._shift((left == c) * 1.0, (right == c) * 1.0, adwin) for c in dict.fromkeys(common)]
                shift, row = max(each, key=lambda pair: pair[0])
            drifted = shift >= threshold
            scores.append(
                Score(
                    column,
                    f"drifted from row {row} on" if drifted else "stable",
                    drifted=drifted,
                    method="ADWIN, shift in standard deviations" if kind == "number" else "ADWIN, shift of a share",
                    score=shift,
                    threshold=threshold,
                )
            )
        return Comparison(scores)

    def _shift(self, reference: "pd.Series", current: "pd.Series", options: Mapping[str, Any]) -> tuple[float, Any]:
        """The farthest that the mean moved from the reference's after a change, and the row of that change."""
        detector = self.detector(**options)
        # A reference is one distribution, whatever the order of its rows.
        shuffled: Any = reference.sample(frac=1, random_state=self.seed)
        for value in shuffled:
            detector.update(value)
        changes: list[int] = []
        for position, value in enumerate(current):
            detector.update(value)
            if detector.drift_detected:
                # What is left in the window reaches back to the change, or into the reference.
                changes.append(max(position + 1 - round(detector.width), *changes[-1:], 0))
        rows, mean = list(current.index), float(reference.mean())
        shifts = [
            (abs(float(current.iloc[start:end].mean()) - mean), rows[start])
            for start, end in itertools.pairwise([*changes, len(rows)])
            if start < end
        ]
        return max(shifts, key=lambda pair: pair[0], default=(0.0, None))
