"""Drift checks with river, which tell from which row on a column has changed."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.river.checks import drift_check as drift_check
    from dagster_mlops.river.resource import RiverResource as RiverResource

__getattr__, __dir__ = lazy_door(__name__)
