"""From one prediction back to the raw data and the commit, and from a training run to its repetition."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.lineage.chain.sources import EventLog as EventLog
    from dagster_mlops.lineage.chain.walk import Link as Link
    from dagster_mlops.lineage.chain.walk import trace as trace
    from dagster_mlops.lineage.production.overview import Status as Status
    from dagster_mlops.lineage.production.overview import status as status
    from dagster_mlops.lineage.reproduction.asset import reproduction_asset as reproduction_asset

# On demand: a code location needs one of them, the command line the others.
__getattr__, __dir__ = lazy_door(__name__)
