"""Data quality, drift and performance checks with Evidently."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door
from dagster_mlops.evidently.checks import data_quality_check, drift_check, performance_check
from dagster_mlops.evidently.resource import EvidentlyResource

if TYPE_CHECKING:
    from dagster_mlops.evidently.component import DataQualityCheckComponent, DriftCheckComponent

__all__ = [
    "DataQualityCheckComponent",
    "DriftCheckComponent",
    "EvidentlyResource",
    "data_quality_check",
    "drift_check",
    "performance_check",
]

# On demand: pydantic needs a while for their schemas, which code locations in Python do without.
__getattr__, __dir__ = lazy_door(__name__)
