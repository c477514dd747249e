"""Data quality, drift and performance checks with Evidently."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.evidently.checks import data_quality_check, drift_check, performance_check
    from dagster_mlops.evidently.component import DataQualityCheckComponent, DriftCheckComponent
    from dagster_mlops.evidently.resource import EvidentlyResource

__all__ = [
    "DataQualityCheckComponent",
    "DriftCheckComponent",
    "EvidentlyResource",
    "data_quality_check",
    "drift_check",
    "performance_check",
]

__getattr__, __dir__ = lazy_door(__name__)
