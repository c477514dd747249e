"""The online store: writes that keep newer events, materialization and reads."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.feast.online.materialization import alone as alone
    from dagster_mlops.feast.online.materialization import materialize as materialize
    from dagster_mlops.feast.online.materialization import materialized_windows as materialized_windows
    from dagster_mlops.feast.online.serving import Written as Written
    from dagster_mlops.feast.online.serving import newer_events_kept as newer_events_kept

__getattr__, __dir__ = lazy_door(__name__)
