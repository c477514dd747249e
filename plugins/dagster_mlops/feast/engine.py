"""A Feast compute engine that loads the batch sources of stream views online unchanged.

Feast imports this module by the name that :class:`~dagster_mlops.feast.FeastResource` sets. Nothing else in this
package imports it, because it imports Feast.
"""

import copy
from dataclasses import replace
from typing import Any, Literal

from feast import StreamFeatureView
from feast.infra.common.materialization_job import MaterializationJob, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine, LocalComputeEngineConfig
from feast.infra.registry.base_registry import BaseRegistry


class StoredFeaturesEngineConfig(LocalComputeEngineConfig):
    """Settings below ``batch_engine:``; those of Feast's local engine."""

    type: Literal["dagster_mlops.feast.engine.StoredFeaturesEngine"] = (  # pyright: ignore[reportIncompatibleVariableOverride]
        "dagster_mlops.feast.engine.StoredFeaturesEngine"
    )


class StoredFeaturesEngine(LocalComputeEngine):
    """Feast's local engine, except that a stream view's transformation applies only to its stream.

    The batch source of a stream view is the log of its feature values: Feast writes transformed values there, and its
    offline stores read them unchanged. Feast's own engine transforms and aggregates them a second time when it
    materializes, so that online values differ from historical ones, and views in mode ``spark`` cannot be loaded.
    """

    def materialize(
        self, registry: BaseRegistry, tasks: MaterializationTask | list[MaterializationTask], **kwargs: Any
    ) -> list[MaterializationJob]:
        task_list = [tasks] if isinstance(tasks, MaterializationTask) else tasks
        return super().materialize(registry, [_stored(task) for task in task_list], **kwargs)


def _stored(task: MaterializationTask) -> MaterializationTask:
    if not isinstance(task.feature_view, StreamFeatureView):
        return task
    view = copy.copy(task.feature_view)
    view.feature_transformation, view.aggregations = None, []
    return replace(task, feature_view=view)
