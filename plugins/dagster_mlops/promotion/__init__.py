"""Promotion: an alias moves to a better model version, with evidence."""

from typing import TYPE_CHECKING

from dagster_mlops.core.gates import require_gates
from dagster_mlops.core.lazy_door import lazy_door
from dagster_mlops.promotion.asset import promotion_asset

if TYPE_CHECKING:
    from dagster_mlops.promotion.component import PromotionComponent

__all__ = ["PromotionComponent", "promotion_asset", "require_gates"]

# On demand: pydantic needs a while for their schemas, which code locations in Python do without.
__getattr__, __dir__ = lazy_door(__name__)
