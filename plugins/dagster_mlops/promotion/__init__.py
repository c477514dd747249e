"""Promotion: an alias moves to a better model version, with evidence."""

from dagster_mlops.core.gates import require_gates
from dagster_mlops.promotion.asset import promotion_asset
from dagster_mlops.promotion.component import PromotionComponent

__all__ = ["PromotionComponent", "promotion_asset", "require_gates"]
