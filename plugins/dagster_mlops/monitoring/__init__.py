"""Production held against what a model was validated on: checks of assets, and alarms on live traffic."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.monitoring.alarm.asset import alarm_asset as alarm_asset
    from dagster_mlops.monitoring.alerts.alert import Alert as Alert
    from dagster_mlops.monitoring.alerts.response import response_sensor as response_sensor
    from dagster_mlops.monitoring.alerts.sensor import alert_sensor as alert_sensor
    from dagster_mlops.monitoring.check_components import DataQualityCheckComponent as DataQualityCheckComponent
    from dagster_mlops.monitoring.check_components import PerformanceCheckComponent as PerformanceCheckComponent
    from dagster_mlops.monitoring.comparison.check import drift_check as drift_check
    from dagster_mlops.monitoring.comparison.measure import Comparison as Comparison
    from dagster_mlops.monitoring.comparison.measure import Measures as Measures
    from dagster_mlops.monitoring.comparison.measure import Score as Score
    from dagster_mlops.monitoring.comparison.measure import ToolReport as ToolReport
    from dagster_mlops.monitoring.component import DivergenceAlarmComponent as DivergenceAlarmComponent
    from dagster_mlops.monitoring.live.checks import divergence_checks as divergence_checks
    from dagster_mlops.monitoring.live.incidents import Persistence as Persistence
    from dagster_mlops.monitoring.live.report_asset import incident_report_asset as incident_report_asset
    from dagster_mlops.monitoring.live.sensor import divergence_sensor as divergence_sensor
    from dagster_mlops.monitoring.performance.check import ReportsPerformance as ReportsPerformance
    from dagster_mlops.monitoring.performance.check import performance_check as performance_check
    from dagster_mlops.monitoring.performance.estimate import Estimate as Estimate
    from dagster_mlops.monitoring.performance.estimate import estimated_performance as estimated_performance
    from dagster_mlops.monitoring.quality.check import Summarises as Summarises
    from dagster_mlops.monitoring.quality.check import data_quality_check as data_quality_check

__getattr__, __dir__ = lazy_door(__name__)
