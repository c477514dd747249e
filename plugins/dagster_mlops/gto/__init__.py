"""GTO: a model registry in the tags of a git repository."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.evaluation import EvaluationComponent as EvaluationComponent
    from dagster_mlops.gto.resource import GtoResource as GtoResource
    from dagster_mlops.promotion import PromotionComponent as PromotionComponent

__getattr__, __dir__ = lazy_door(__name__)
