"""Windows of rows as counts: bins frozen with the reference, counted in one pass, merged exactly."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.monitoring.windows.counts import Counts as Counts
    from dagster_mlops.monitoring.windows.counts import Window as Window
    from dagster_mlops.monitoring.windows.cutting import History as History
    from dagster_mlops.monitoring.windows.cutting import cut as cut
    from dagster_mlops.monitoring.windows.profile import Profile as Profile

__getattr__, __dir__ = lazy_door(__name__)
