"""From one prediction back to the raw data and the commit, whichever tools still answer."""

from dagster_mlops.lineage.trace import Link, trace

__all__ = ["Link", "trace"]
