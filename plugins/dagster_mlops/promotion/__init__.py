"""Promotion: an alias moves to a better model version, with evidence."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.core.gates import require_gates as require_gates
    from dagster_mlops.promotion.approval import Approval as Approval
    from dagster_mlops.promotion.approval_assets import approval_asset as approval_asset
    from dagster_mlops.promotion.approval_assets import approval_sensor as approval_sensor
    from dagster_mlops.promotion.asset import promotion_asset as promotion_asset
    from dagster_mlops.promotion.case import Case as Case
    from dagster_mlops.promotion.case import Rule as Rule
    from dagster_mlops.promotion.component import PromotionComponent as PromotionComponent
    from dagster_mlops.promotion.copy_component import ModelCopyComponent as ModelCopyComponent
    from dagster_mlops.promotion.lifecycle import Lifecycle as Lifecycle
    from dagster_mlops.promotion.model_copy import model_copy_asset as model_copy_asset
    from dagster_mlops.promotion.rules.bounds import AtLeast as AtLeast
    from dagster_mlops.promotion.rules.bounds import AtMost as AtMost
    from dagster_mlops.promotion.rules.checks import GreenChecks as GreenChecks
    from dagster_mlops.promotion.rules.fresh_data import FreshData as FreshData
    from dagster_mlops.promotion.rules.improvement import Better as Better
    from dagster_mlops.promotion.rules.improvement import Improvement as Improvement
    from dagster_mlops.promotion.rules.prediction_time import PredictionTime as PredictionTime
    from dagster_mlops.promotion.rules.provenance import CompleteProvenance as CompleteProvenance
    from dagster_mlops.promotion.rules.slices import NotWorseOnSlices as NotWorseOnSlices
    from dagster_mlops.promotion.rules.source_promotion import SourcePromotion as SourcePromotion
    from dagster_mlops.promotion.rules.stored_model import CompatibleSignature as CompatibleSignature
    from dagster_mlops.promotion.rules.stored_model import ModelSize as ModelSize
    from dagster_mlops.promotion.sensor import alias_sensor as alias_sensor
    from dagster_mlops.promotion.verdict import Row as Row

__getattr__, __dir__ = lazy_door(__name__)
