"""GTO: a model registry in the tags of a git repository."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.evaluation import EvaluationComponent
    from dagster_mlops.gto.resource import GtoResource
    from dagster_mlops.promotion import PromotionComponent

__all__ = ["EvaluationComponent", "GtoResource", "PromotionComponent"]

__getattr__, __dir__ = lazy_door(__name__)
