"""Feature views, point-in-time-correct training sets and online features from a Feast repository."""

from dagster_mlops.feast.assets import feature_view_assets as feature_view_assets
from dagster_mlops.feast.checks.parity import online_offline_parity_check as online_offline_parity_check
from dagster_mlops.feast.checks.training_set import training_set_checks as training_set_checks
from dagster_mlops.feast.component import FeatureRepositoryComponent as FeatureRepositoryComponent
from dagster_mlops.feast.graph import feature_repository_defs as feature_repository_defs
from dagster_mlops.feast.resource import FeastResource as FeastResource
from dagster_mlops.feast.training_set import training_set_asset as training_set_asset

__all__ = [
    "FeastResource",
    "FeatureRepositoryComponent",
    "feature_repository_defs",
    "feature_view_assets",
    "online_offline_parity_check",
    "training_set_asset",
    "training_set_checks",
]
