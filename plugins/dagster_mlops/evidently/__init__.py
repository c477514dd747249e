"""Data quality, drift and performance checks with Evidently."""

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
