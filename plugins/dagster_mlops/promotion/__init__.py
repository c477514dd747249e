"""Promotion: an alias moves to a better model version, with evidence."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.core.gates import require_gates as require_gates
    from dagster_mlops.promotion.asset import promotion_asset as promotion_asset
    from dagster_mlops.promotion.component import PromotionComponent as PromotionComponent

__getattr__, __dir__ = lazy_door(__name__)
