"""Feature views, point-in-time-correct training sets and online features from a Feast repository."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.feast.assets import feature_repository_defs as feature_repository_defs
    from dagster_mlops.feast.assets import feature_view_assets as feature_view_assets
    from dagster_mlops.feast.checks.online import feature_freshness_checks as feature_freshness_checks
    from dagster_mlops.feast.checks.online import online_offline_parity_check as online_offline_parity_check
    from dagster_mlops.feast.checks.server import feature_server_health_check as feature_server_health_check
    from dagster_mlops.feast.checks.training_set import training_set_checks as training_set_checks
    from dagster_mlops.feast.component import FeatureRepositoryComponent as FeatureRepositoryComponent
    from dagster_mlops.feast.component_fields import FreshnessCheck as FreshnessCheck
    from dagster_mlops.feast.component_fields import ParityCheck as ParityCheck
    from dagster_mlops.feast.component_fields import Push as Push
    from dagster_mlops.feast.component_fields import ServerCheck as ServerCheck
    from dagster_mlops.feast.component_fields import TrainingSet as TrainingSet
    from dagster_mlops.feast.component_fields import TrainingSetChecks as TrainingSetChecks
    from dagster_mlops.feast.lookup import OnlineLookup as OnlineLookup
    from dagster_mlops.feast.pushes import Pushed as Pushed
    from dagster_mlops.feast.pushes import PushTarget as PushTarget
    from dagster_mlops.feast.pushes import push as push
    from dagster_mlops.feast.pushes import push_asset as push_asset
    from dagster_mlops.feast.pushes import write_to_view as write_to_view
    from dagster_mlops.feast.resource import FeastResource as FeastResource
    from dagster_mlops.feast.training_set import TrainingSetConfig as TrainingSetConfig
    from dagster_mlops.feast.training_set import training_set_asset as training_set_asset

__getattr__, __dir__ = lazy_door(__name__)
