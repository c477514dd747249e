"""Parts of a Feast repository in YAML beside its feature views; each is one call of a factory."""

import pkgutil
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any

import dagster as dg
from pydantic import Field

from dagster_mlops.core.yaml_fields import (
    Count,
    FromTemplate,
    NotNegative,
    Positive,
    ResolvedDuration,
    ResolvedPartitions,
    ResolvedText,
    Share,
    Shares,
    YamlFields,
)
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.checks.online import feature_freshness_checks
from dagster_mlops.feast.checks.training_set import training_set_checks
from dagster_mlops.feast.pushes import PushTarget
from dagster_mlops.feast.training_set import training_set_asset


def _imported(context: dg.ResolutionContext, name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, ValueError, AttributeError) as error:
        raise FeatureError(
            f"entities_type: {name!r} cannot be imported ({error}). Name a type such as pyarrow.Table."
        ) from error


class TrainingSetChecks(YamlFields):
    """Checks of a training set: `training_set_checks`."""

    label: str | None = Field(default=None, description="A column that no feature may equal.")
    max_null_share: Shares = Field(default=0.5, description="Allowed share of missing values, of all or by column.")
    max_expired_share: Shares = Field(
        default=0.5, description="Allowed share of rows older than the ttl, of all views or by feature view."
    )
    max_distinct_share: Share = Field(default=0.9, description="Allowed share of distinct values in text.")
    constant: Sequence[str] = Field(default=(), description="Features that may have only one value.")
    unique: Sequence[str] = Field(default=(), description="Columns that identify a row.")
    sample: Count = Field(default=1000, description="Number of rows that are looked up in the sources.")
    seed: int = Field(default=0, description="Seed of the sample of rows.")
    blocking: bool = Field(default=True, description="Hold back downstream assets of the run after a failure.")


class _AssetFields(YamlFields):
    """Fields of an asset that the repository is given in addition to its feature views."""

    partitions: ResolvedPartitions | None = Field(default=None, description="Partitions; none by default.")
    partition_mapping: FromTemplate | None = Field(
        default=None, description="Partitions of the input that are read: a template variable of yours that gives it."
    )
    key_prefix: Sequence[str] | None = Field(default=None, description="Asset key prefix.")
    group_name: str | None = Field(default=None, description="Asset group; that of the repository by default.")
    description: str | None = Field(default=None, description="Description of the asset.")
    automation_condition: FromTemplate | None = Field(
        default=None, description="When it is materialized automatically: '{{ automation_condition.eager() }}'."
    )

    def arguments(self, group_name: str | None) -> dict[str, Any]:
        """Arguments of the asset's factory, in the group of the repository by default."""
        fields = {name: value for name, value in self.__dict__.items() if name not in ("checks", "partitions")}
        return {**fields, "group_name": self.group_name or group_name, "partitions_def": self.partitions}


class TrainingSet(_AssetFields):
    """A training set from a feature service of the repository: `training_set_asset`."""

    name: str = Field(description="Name of the asset.")
    feature_service: str = Field(description="Feature service whose features are joined.")
    entities: dg.ResolvedAssetKey = Field(description="Asset that gives the entity dataframe, as group/name.")
    timestamp_column: str = Field(default="event_timestamp", description="Event time column of the entity dataframe.")
    io_manager_key: str | None = Field(
        default=None, description="IO manager that stores the training set; Dagster's default IO manager by default."
    )
    datasets: str | None = Field(default=None, description="Resource that reads versions of datasets for a rebuild.")
    entities_type: Annotated[Any, dg.Resolver(_imported, model_field_type=str)] | None = Field(
        default=None, description="Type that the entities are loaded as, such as pyarrow.Table; pandas by default."
    )
    full_feature_names: bool = Field(
        default=False, description="Name features VIEW__FEATURE, for a service with two features of one name."
    )
    checks: TrainingSetChecks | None = Field(
        default=None, description="Checks of the training set; {} for all with their defaults."
    )

    def build(self, group_name: str | None, deps: Sequence[dg.AssetsDefinition]) -> dg.Definitions:
        """The asset downstream of its feature views, and its checks."""
        asset = training_set_asset(deps=deps, **self.arguments(group_name))
        columns = {"feature_service": self.feature_service, "timestamp_column": self.timestamp_column}
        checks = training_set_checks(asset=asset, **columns, **vars(self.checks)) if self.checks else []
        return dg.Definitions(assets=[asset], asset_checks=checks)


class Push(_AssetFields):
    """Rows of an asset, written to the views of a push source, or to one feature view: `push_asset`."""

    name: str = Field(description="Name of the asset.")
    rows: dg.ResolvedAssetKey = Field(description="Asset that gives the rows, as group/name.")
    push_source: str | None = Field(
        default=None, description="Name of Feast's push source; rows go to all of its views."
    )
    feature_view: str | None = Field(default=None, description="Feature view to write to instead of a push source.")
    to: PushTarget = Field(default="online", description="Destination: online, offline or online_and_offline.")
    batch_size: Count = Field(default=10_000, description="Number of rows that are written online at once.")
    deps: Sequence[dg.ResolvedAssetKey] = Field(default=(), description="Further upstream assets.")
    pool: str | None = Field(default=None, description="Concurrency pool.")


class FreshnessCheck(YamlFields):
    """Checks of the age of a feature view's events, and that all are online: `feature_freshness_checks`."""

    view: str = Field(description="The feature view.")
    asset: dg.ResolvedAssetKey | None = Field(default=None, description="Asset to check; by default the view's.")
    max_lag: ResolvedDuration | None = Field(
        default=None, description="Maximum age of the newest event, such as {hours: 6}; the view's ttl by default."
    )
    warn_lag: ResolvedDuration | None = Field(default=None, description="Age above which the check warns.")
    max_staleness: ResolvedDuration = Field(
        default=timedelta(0), description="Maximum time that the online store may be behind the source's newest event."
    )
    blocking: bool = Field(default=False, description="Hold back downstream assets of the run after a failure.")

    def build(self, views: Mapping[str, dg.AssetKey]) -> list[dg.AssetChecksDefinition]:
        """The two checks; `views` are the assets of feature views by name."""
        return feature_freshness_checks(**{**self.__dict__, "asset": self.asset or views[self.view]})


class ParityCheck(YamlFields):
    """A check that the online store serves the offline store's values: `online_offline_parity_check`."""

    asset: dg.ResolvedAssetKey = Field(description="Asset to check, such as the training set.")
    feature_service: str = Field(description="Feature service whose features are compared.")
    sample: Count = Field(default=1000, description="Number of entities of each feature view.")
    tolerance: NotNegative = Field(default=1e-6, description="Allowed relative difference of numbers.")
    seed: int = Field(default=0, description="Seed of the sample of entities.")
    name: str = Field(default="online_offline_parity", description="Name of the check.")
    blocking: bool = Field(default=True, description="Hold back downstream assets of the run after a failure.")


class ServerCheck(YamlFields):
    """A check that a feature server answers in time and with the features: `feature_server_health_check`."""

    asset: dg.ResolvedAssetKey = Field(description="Asset to check, such as a feature view's.")
    url: ResolvedText = Field(description="Address of the server, or {env: NAME} for the variable with it.")
    feature_service: str = Field(description="Feature service to read.")
    entities: dict[str, list[Any]] = Field(
        description="Join keys and request data by name, each with one value per row."
    )
    full_feature_names: bool = Field(
        default=False, description="Name features VIEW__FEATURE, for a service with two features of one name."
    )
    token: ResolvedText | None = Field(default=None, description="Bearer token, as {env: NAME}.")
    timeout: Positive = Field(default=5.0, description="Seconds that each response may take.")
    max_latency: ResolvedDuration | None = Field(
        default=None, description="Duration of a read above which the check warns, such as {milliseconds: 50}."
    )
    min_present: Share = Field(default=0.0, description="Minimum share of values that are not missing.")
    name: str = Field(default="feature_server_health", description="Name of the check.")
    blocking: bool = Field(default=False, description="Hold back downstream assets of the run after a failure.")
