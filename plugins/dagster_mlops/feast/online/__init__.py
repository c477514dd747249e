"""The online store: writes that keep newer events, materialization and reads."""

from dagster_mlops.feast.online.materialization import alone, materialize, materialized_windows
from dagster_mlops.feast.online.serving import Written, newer_events_kept

__all__ = ["Written", "alone", "materialize", "materialized_windows", "newer_events_kept"]
