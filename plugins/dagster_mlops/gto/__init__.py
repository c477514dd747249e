"""GTO: a model registry in the tags of a git repository."""

from dagster_mlops.evaluation import EvaluationComponent
from dagster_mlops.gto.resource import GtoResource
from dagster_mlops.promotion import PromotionComponent

__all__ = ["EvaluationComponent", "GtoResource", "PromotionComponent"]
