"""From one prediction back to the raw data and the commit, whichever tools still answer, and forth again."""

from dagster_mlops.lineage.asset import reproduction_asset
from dagster_mlops.lineage.event_log import EventLog
from dagster_mlops.lineage.git import GitResolver
from dagster_mlops.lineage.status import Status, status
from dagster_mlops.lineage.trace import Link, trace

__all__ = ["EventLog", "GitResolver", "Link", "Status", "reproduction_asset", "status", "trace"]
