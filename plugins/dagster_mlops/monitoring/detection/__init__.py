"""Alarms at a promised rate: windows of counts judged against a history of windows."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.monitoring.detection.detector import Detector as Detector
    from dagster_mlops.monitoring.detection.judgement import ColumnScore as ColumnScore
    from dagster_mlops.monitoring.detection.judgement import Judgement as Judgement
    from dagster_mlops.monitoring.detection.recent import Recent as Recent

__getattr__, __dir__ = lazy_door(__name__)
