"""Drift of what production sees, by any measuring tool: windows, partitions, verdicts, records and plots."""

from dagster_mlops.monitoring.checks import drift_check
from dagster_mlops.monitoring.measure import Comparison, Measures, Score, ToolReport

__all__ = ["Comparison", "Measures", "Score", "ToolReport", "drift_check"]
