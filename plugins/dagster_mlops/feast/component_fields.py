"""What a Feast repository can have in YAML beside its feature views: each part is one call of a factory."""

import importlib
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
from dagster_mlops.feast.checks.freshness import feature_freshness_checks
from dagster_mlops.feast.checks.parity import online_offline_parity_check
from dagster_mlops.feast.checks.server import feature_server_health_check
from dagster_mlops.feast.checks.training_set import training_set_checks
from dagster_mlops.feast.pushes import PushTarget, push_asset
from dagster_mlops.feast.training_set import training_set_asset


def _imported(context: dg.ResolutionContext, name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, ValueError, AttributeError) as error:
        raise FeatureError(
            f"entities_type: {name!r} is no type that can be imported ({error}). Name one such as pyarrow.Table."
        ) from error


class TrainingSetChecks(YamlFields):
    """Checks of a training set: `training_set_checks`."""

    label: str | None = Field(default=None, description="A column that no feature may equal.")
    max_null_share: Shares = Field(default=0.5, description="Allowed share of missing values, of all or by column.")
    max_expired_share: Shares = Field(
        default=0.5, description="Allowed share of rows beyond the ttl, of all views or by feature view."
    )
    max_distinct_share: Share = Field(default=0.9, description="Allowed share of different values in text.")
    constant: Sequence[str] = Field(default=(), description="Features that may have one value only.")
    unique: Sequence[str] = Field(default=(), description="Columns that together name a row.")
    sample: Count = Field(default=1000, description="How many rows are looked up in the sources.")
    seed: int = Field(default=0, description="Decides which rows.")
    blocking: bool = Field(default=True, description="Whether a failure stops what is downstream in the same run.")

    def build(self, asset: dg.AssetsDefinition, service: str, timestamp_column: str) -> list[dg.AssetChecksDefinition]:
        """The checks of `asset`, a training set of a feature service."""
        return training_set_checks(
            asset=asset, feature_service=service, timestamp_column=timestamp_column, **self.__dict__
        )


class TrainingSet(YamlFields):
    """A training set from a feature service of the repository: `training_set_asset`."""

    name: str = Field(description="Name of the asset.")
    feature_service: str = Field(description="Feature service whose features are joined.")
    entities: dg.ResolvedAssetKey = Field(description="Asset that gives the entity dataframe, as group/name.")
    timestamp_column: str = Field(default="event_timestamp", description="Event time column of the entity dataframe.")
    io_manager_key: str | None = Field(
        default=None, description="IO manager that stores the training set; Dagster's default unless given."
    )
    datasets: str | None = Field(default=None, description="Resource by which a rebuild reads versions of datasets.")
    entities_type: Annotated[Any, dg.Resolver(_imported, model_field_type=str)] | None = Field(
        default=None, description="What the entities are loaded as, such as pyarrow.Table; pandas by default."
    )
    partitions: ResolvedPartitions | None = Field(default=None, description="Partitions; none by default.")
    partition_mapping: FromTemplate | None = Field(
        default=None, description="Which partitions of `entities` are read: a template variable of yours that gives it."
    )
    key_prefix: Sequence[str] | None = Field(default=None, description="Asset key prefix.")
    group_name: str | None = Field(default=None, description="Asset group; that of the repository by default.")
    description: str | None = Field(default=None, description="Description of the asset.")
    automation_condition: FromTemplate | None = Field(
        default=None, description="When it is materialized by itself: '{{ automation_condition.eager() }}'."
    )
    checks: TrainingSetChecks | None = Field(default=None, description="Checks of it; {} for all as they are.")

    def build(self, group_name: str | None, deps: Sequence[dg.AssetsDefinition]) -> dg.Definitions:
        """The asset below those of its feature views, and its checks."""
        options = {**self.__dict__, "group_name": self.group_name or group_name, "partitions_def": self.partitions}
        asset = training_set_asset(
            deps=deps, **{name: value for name, value in options.items() if name not in ("checks", "partitions")}
        )
        checks = self.checks.build(asset, self.feature_service, self.timestamp_column) if self.checks else []
        return dg.Definitions(assets=[asset], asset_checks=checks)


class Push(YamlFields):
    """Rows of an asset, written to the views of a push source, or to one feature view: `push_asset`."""

    name: str = Field(description="Name of the asset.")
    rows: dg.ResolvedAssetKey = Field(description="Asset that gives the rows, as group/name.")
    push_source: str | None = Field(default=None, description="Name of Feast's push source: to all of its views.")
    feature_view: str | None = Field(default=None, description="In place of a push source: to this feature view.")
    to: PushTarget = Field(default="online", description="Where rows go: online, offline or online_and_offline.")
    batch_size: Count = Field(default=10_000, description="How many rows are written online at once.")
    deps: Sequence[dg.ResolvedAssetKey] = Field(default=(), description="Further assets that come before.")
    partitions: ResolvedPartitions | None = Field(default=None, description="Partitions; none by default.")
    partition_mapping: FromTemplate | None = Field(
        default=None, description="Which partitions of `rows` are read: a template variable of yours that gives it."
    )
    key_prefix: Sequence[str] | None = Field(default=None, description="Asset key prefix.")
    group_name: str | None = Field(default=None, description="Asset group; that of the repository by default.")
    description: str | None = Field(default=None, description="Description of the asset.")
    automation_condition: FromTemplate | None = Field(
        default=None, description="When it is materialized by itself: '{{ automation_condition.eager() }}'."
    )
    pool: str | None = Field(default=None, description="Concurrency pool.")

    def build(self, group_name: str | None) -> dg.AssetsDefinition:
        """The asset."""
        options = {**self.__dict__, "group_name": self.group_name or group_name, "partitions_def": self.partitions}
        return push_asset(**{name: value for name, value in options.items() if name != "partitions"})


class FreshnessCheck(YamlFields):
    """How old a feature view's events are, and whether all are online: `feature_freshness_checks`."""

    view: str = Field(description="The feature view.")
    asset: dg.ResolvedAssetKey | None = Field(default=None, description="Asset to check; that of the view by default.")
    max_lag: ResolvedDuration | None = Field(
        default=None, description="Oldest age of the newest event, such as {hours: 6}; the view's ttl by default."
    )
    warn_lag: ResolvedDuration | None = Field(default=None, description="An age above this is a warning.")
    max_staleness: ResolvedDuration = Field(
        default=timedelta(0), description="How far the online store may be behind the source's newest event."
    )
    blocking: bool = Field(default=False, description="Whether a failure stops what is downstream in the same run.")

    def build(self, views: Mapping[str, dg.AssetKey]) -> list[dg.AssetChecksDefinition]:
        """The two checks; `views` are the assets of feature views by name."""
        return feature_freshness_checks(**{**self.__dict__, "asset": self.asset or views[self.view]})


class ParityCheck(YamlFields):
    """Whether the online store serves what the offline store says: `online_offline_parity_check`."""

    asset: dg.ResolvedAssetKey = Field(description="Asset to check, such as the training set.")
    feature_service: str = Field(description="Feature service whose features are compared.")
    sample: Count = Field(default=1000, description="How many entities of each feature view.")
    tolerance: NotNegative = Field(default=1e-6, description="Allowed relative difference of numbers.")
    seed: int = Field(default=0, description="Decides which entities.")
    name: str = Field(default="online_offline_parity", description="Name of the check.")
    blocking: bool = Field(default=True, description="Whether a failure stops what is downstream in the same run.")

    def build(self) -> dg.AssetChecksDefinition:
        """The check."""
        return online_offline_parity_check(**self.__dict__)


class ServerCheck(YamlFields):
    """Whether a feature server answers, in time and with the features: `feature_server_health_check`."""

    asset: dg.ResolvedAssetKey = Field(description="Asset to check, such as that of a feature view.")
    url: ResolvedText = Field(description="Address of the server, or {env: NAME} of the variable that holds it.")
    feature_service: str = Field(description="Feature service that is read.")
    entities: dict[str, list[Any]] = Field(description="Join keys and request data by name: a value per row.")
    token: ResolvedText | None = Field(default=None, description="Bearer token, as {env: NAME}.")
    timeout: Positive = Field(default=5.0, description="Seconds that each answer may take.")
    max_latency: ResolvedDuration | None = Field(
        default=None, description="A read that takes longer is a warning, such as {milliseconds: 50}."
    )
    min_present: Share = Field(default=0.0, description="Least share of values that must be there.")
    name: str = Field(default="feature_server_health", description="Name of the check.")
    blocking: bool = Field(default=False, description="Whether a failure stops what is downstream in the same run.")

    def build(self) -> dg.AssetChecksDefinition:
        """The check."""
        return feature_server_health_check(**self.__dict__)
