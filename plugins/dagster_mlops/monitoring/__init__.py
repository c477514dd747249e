"""Drift of what production sees, by any measuring tool: windows, partitions, verdicts, records and plots."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.monitoring.checks import drift_check
    from dagster_mlops.monitoring.measure import Comparison, Measures, Score, ToolReport

__all__ = ["Comparison", "Measures", "Score", "ToolReport", "drift_check"]

__getattr__, __dir__ = lazy_door(__name__)
