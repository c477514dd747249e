"""An alarm: what is normal for a deployment, and the score beyond which it is not, as a value that assets keep."""

import functools
import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.detection import Detector
from dagster_mlops.monitoring.performance.harm import HarmScale

_FORM = 1


class Size(NamedTuple):
    """The size of a window: a number of rows, or a length of time."""

    rows: int = 0
    every: timedelta = timedelta(0)

    def __str__(self) -> str:
        return f"{self.rows:,} rows" if self.rows else str(self.every)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"rows": self.rows, "seconds": self.every.total_seconds()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Size":
        """The size of :meth:`to_dict`."""
        return cls(stored["rows"], timedelta(seconds=stored["seconds"]))


@lazy_dataclass(frozen=True, eq=False)
class Alarm:
    """A calibrated detector with the windows that it was calibrated for.

    `outputs` are the parts of a prediction by column of the history; see
    :func:`dagster_mlops.monitoring.live.log_rows.rows_after`. `model_version` is the version that predicted the
    history; empty where the history has no predictions.
    """

    name: str
    detector: Detector
    size: Size
    outputs: Mapping[str, str]
    model_version: str = ""
    slow: float | None = None  # seconds from which a request counts as slow
    harm: HarmScale | None = None

    @functools.cached_property
    def digest(self) -> str:
        """A hash of all of it: windows counted for one alarm mean nothing to another."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        facts = {
            "name": self.name,
            "outputs": dict(self.outputs),
            "model_version": self.model_version,
            "slow": self.slow,
            "harm": self.harm and self.harm.to_dict(),
        }
        return {"form": _FORM, **facts, "size": self.size.to_dict(), "detector": self.detector.to_dict()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Alarm":
        """The alarm of :meth:`to_dict`.

        Raises:
            MonitoringError: It is of another version of this library, or no alarm.
        """
        try:
            if stored["form"] != _FORM:
                raise ValueError(f"form {stored['form']}")
            size, detector = Size.from_dict(stored["size"]), Detector.from_dict(stored["detector"])
            outputs = dict(stored["outputs"])
            harm = stored["harm"] and HarmScale.from_dict(stored["harm"])
            return cls(stored["name"], detector, size, outputs, stored["model_version"], stored["slow"], harm)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MonitoringError(
                f"what the asset holds is not an alarm ({type(error).__name__}: {error}). Materialize it again."
            ) from error
