"""Data quality, drift and performance checks with Evidently."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.evidently.checks import data_quality_check as data_quality_check
    from dagster_mlops.evidently.checks import drift_check as drift_check
    from dagster_mlops.evidently.checks import performance_check as performance_check
    from dagster_mlops.evidently.component import DataQualityCheckComponent as DataQualityCheckComponent
    from dagster_mlops.evidently.component import DriftCheckComponent as DriftCheckComponent
    from dagster_mlops.evidently.component import PerformanceCheckComponent as PerformanceCheckComponent
    from dagster_mlops.evidently.resource import EvidentlyResource as EvidentlyResource

__getattr__, __dir__ = lazy_door(__name__)
