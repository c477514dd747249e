"""Promotion in YAML."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from dagster_mlops.core.asset_keys import asset_key
from dagster_mlops.core.yaml_fields import Count, NotNegative, Share, YamlFields
from dagster_mlops.promotion.approval import Approval
from dagster_mlops.promotion.approval_assets import approval_asset, approval_sensor
from dagster_mlops.promotion.asset import promotion_asset
from dagster_mlops.promotion.lifecycle import Lifecycle
from dagster_mlops.promotion.rule_fields import ResolvedRule
from dagster_mlops.promotion.sensor import alias_sensor


class ApprovalFields(YamlFields):
    """The people whose approval a promotion needs once its rules hold: an ``Approval``."""

    people: Count = Field(default=1, description="Number of different people who have to approve.")
    approvers: Sequence[str] = Field(default=(), description="Names that count; by default, any.")
    valid_days: NotNegative = Field(default=7.0, description="Days for which a request is open.")
    separate_duties: bool = Field(
        default=False, description="Set to true so that authors of the commit, the training and the run do not count."
    )


class LifecycleFields(YamlFields):
    """Names of the aliases that follow the promoted one: a ``Lifecycle``."""

    candidate: str = Field(default="", description="Alias of the version that a run judges, for as long as it does.")
    challenger: str = Field(
        default="", description="Alias of the version for which all rules hold, for as long as its request is open."
    )
    previous: str = Field(default="", description="Alias of the version to which a rollback returns.")


class PromotionComponent(YamlFields, dg.Component):
    """Moves an alias to the version that a training asset made, when every rule holds.

    ```yaml
    type: dagster_mlops.mlflow.PromotionComponent
    attributes:
      candidate: arrival_delay_model
      registered_model_name: arrival_delay
      metric: auc
      min_improvement: 0.002
      rules:
        - {type: at_most, metric: log_loss, limit: 0.5}
        - {type: complete_provenance}
    ```

    The resource that `registry` names, by default ``mlflow`` (an ``MlflowResource``), holds the models.
    """

    candidate: str = Field(description="Key of the training asset whose version wants the alias.")
    registered_model_name: str = Field(description="The registered model.")
    metric: str | None = Field(
        default=None, description="Metric that has to be better: of the training run, or of the evaluation."
    )
    rules: Sequence[ResolvedRule] = Field(default=(), description="Further rules, all of which have to hold.")
    evaluation: str | None = Field(
        default=None, description="Key of an evaluation asset: then both versions are compared on its rows."
    )
    error_rate: Share | None = Field(
        default=0.05,
        description="With an evaluation: how often, of `looks` candidates that are no better, one may be promoted.",
    )
    looks: Count = Field(default=52, description="How many candidates share the error rate, such as those of a year.")
    greater_is_better: bool = Field(default=True, description="Set to false for errors and losses.")
    min_improvement: NotNegative = Field(default=0.0, description="How much better the candidate has to be, at least.")
    approval: ApprovalFields | None = Field(
        default=None,
        description="People who have to agree. Adds the asset <name>_approval, by which they do, and a sensor that "
        "promotes after it.",
    )
    lifecycle: LifecycleFields | None = Field(
        default=None,
        description="Further aliases that show where a version is on its way. By default, only `alias` is set.",
    )
    after_move: Sequence[str] | None = Field(
        default=None,
        description="Keys of the assets that run after each move of the alias, such as a deployment after a rollback: "
        "an ``alias_sensor``.",
    )
    minimum_interval_seconds: Count | None = Field(
        default=None,
        description="Seconds between the ticks of the sensors; default: 30 after approvals, 60 after moves.",
    )
    alias: str = Field(default="champion", description="The alias that moves.")
    name: str = Field(default="champion", description="Name of the asset.")
    registry: str = Field(default="mlflow", description="Key of the resource that holds the models.")
    group_name: str | None = Field(default=None, description="Asset group.")
    pool: str | None = Field(default=None, description="Dagster pool, to run one promotion at a time.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The promotion asset, with the asset and the sensors of its approval and of what runs after it."""
        where: dict[str, Any] = {
            "registered_model_name": self.registered_model_name,
            "alias": self.alias,
            "registry": self.registry,
        }
        assets, sensors = list[dg.AssetsDefinition](), list[dg.SensorDefinition]()
        approval = Approval(**vars(self.approval)) if self.approval else None
        seconds = self.minimum_interval_seconds
        every: dict[str, Any] = {"minimum_interval_seconds": seconds} if seconds else {}
        of_sensors = ("after_move", "minimum_interval_seconds")
        of_asset = {name: value for name, value in vars(self).items() if name not in of_sensors}
        lifecycle = Lifecycle(**vars(self.lifecycle)) if self.lifecycle else None
        promotion = promotion_asset(**{**of_asset, "approval": approval, "lifecycle": lifecycle})
        if approval:
            waits = {**where, "promotion": promotion}
            assets.append(approval_asset(**waits, name=f"{self.name}_approval", group_name=self.group_name))
            sensors.append(approval_sensor(**waits, **every, name=f"{self.name}_after_approval"))
        if self.after_move:
            selection = [asset_key(asset) for asset in self.after_move]
            sensors.append(alias_sensor(**where, **every, name=f"{self.name}_after_move", asset_selection=selection))
        return dg.Definitions(assets=[promotion, *assets], sensors=sensors)
