"""Feature views, point-in-time-correct training sets and online features from a Feast repository."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.feast.assets import feature_view_assets
    from dagster_mlops.feast.checks.freshness import feature_freshness_checks
    from dagster_mlops.feast.checks.parity import online_offline_parity_check
    from dagster_mlops.feast.checks.server import feature_server_health_check
    from dagster_mlops.feast.checks.training_set import training_set_checks
    from dagster_mlops.feast.component import FeatureRepositoryComponent
    from dagster_mlops.feast.component_fields import (
        FreshnessCheck,
        ParityCheck,
        Push,
        ServerCheck,
        TrainingSet,
        TrainingSetChecks,
    )
    from dagster_mlops.feast.graph import feature_repository_defs
    from dagster_mlops.feast.pushes import Pushed, PushTarget, push, push_asset, write_to_view
    from dagster_mlops.feast.resource import FeastResource
    from dagster_mlops.feast.training_set import TrainingSetConfig, training_set_asset

__all__ = [
    "FeastResource",
    "FeatureRepositoryComponent",
    "FreshnessCheck",
    "ParityCheck",
    "Push",
    "PushTarget",
    "Pushed",
    "ServerCheck",
    "TrainingSet",
    "TrainingSetChecks",
    "TrainingSetConfig",
    "feature_freshness_checks",
    "feature_repository_defs",
    "feature_server_health_check",
    "feature_view_assets",
    "online_offline_parity_check",
    "push",
    "push_asset",
    "training_set_asset",
    "training_set_checks",
    "write_to_view",
]

__getattr__, __dir__ = lazy_door(__name__)
