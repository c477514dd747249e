"""Drift checks with river, which tell from which row on a column has changed."""

from dagster_mlops.river.checks import drift_check
from dagster_mlops.river.resource import RiverResource

__all__ = ["RiverResource", "drift_check"]
