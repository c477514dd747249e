"""Quality, drift and performance of what production sees: windows, partitions, verdicts, records and plots."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.monitoring.comparison.check import drift_check as drift_check
    from dagster_mlops.monitoring.comparison.measure import Comparison as Comparison
    from dagster_mlops.monitoring.comparison.measure import Measures as Measures
    from dagster_mlops.monitoring.comparison.measure import Score as Score
    from dagster_mlops.monitoring.comparison.measure import ToolReport as ToolReport
    from dagster_mlops.monitoring.quality.check import Summarises as Summarises
    from dagster_mlops.monitoring.quality.check import data_quality_check as data_quality_check

__getattr__, __dir__ = lazy_door(__name__)
