"""Feature views, point-in-time-correct training sets and online features from a Feast repository."""

from dagster_mlops.feast.assets import feature_view_assets as feature_view_assets
from dagster_mlops.feast.resource import FeastResource as FeastResource
from dagster_mlops.feast.training_set import training_set_asset as training_set_asset

__all__ = ["FeastResource", "feature_view_assets", "training_set_asset"]
