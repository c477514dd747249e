"""The YAML face: promotion, and bounds on a training asset's metrics."""

import dagster as dg
from pydantic import Field

from dagster_mlops.mlflow.checks import metric_checks
from dagster_mlops.mlflow.promotion import promotion_asset


class PromotionComponent(dg.Component, dg.Model, dg.Resolvable):
    """Moves an alias to the version that a training asset made, when it beats the one that holds the alias.

    ```yaml
    type: dagster_mlops.mlflow.PromotionComponent
    attributes:
      candidate: arrival_delay_model
      registered_model_name: arrival_delay
      metric: auc
      min_improvement: 0.002
    ```

    The resource ``mlflow`` (an ``MlflowResource``) says which registry.
    """

    candidate: str = Field(description="Key of the training asset whose version wants the alias.")
    registered_model_name: str = Field(description="The registered model in MLflow.")
    metric: str = Field(description="Metric that decides: of the training run, or of the evaluation.")
    evaluation: str | None = Field(
        default=None, description="Key of an evaluation asset: then both versions are compared on its rows."
    )
    min_wins: float = Field(
        default=0.0, ge=0, le=1, description="With an evaluation: the share of resamples that the candidate has to win."
    )
    greater_is_better: bool = Field(default=True, description="Set to false for errors and losses.")
    min_improvement: float = Field(default=0.0, ge=0, description="How much better the candidate has to be, at least.")
    alias: str = Field(default="champion", description="The alias that moves.")
    name: str = Field(default="champion", description="Name of the asset.")
    group_name: str | None = Field(default=None, description="Asset group.")
    pool: str | None = Field(default=None, description="Dagster pool, to run one promotion at a time.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The promotion asset."""
        asset = promotion_asset(
            candidate=self.candidate,
            registered_model_name=self.registered_model_name,
            metric=self.metric,
            evaluation=self.evaluation,
            min_wins=self.min_wins,
            greater_is_better=self.greater_is_better,
            min_improvement=self.min_improvement,
            alias=self.alias,
            name=self.name,
            group_name=self.group_name,
            pool=self.pool,
        )
        return dg.Definitions(assets=[asset])


class MetricBounds(dg.Model, dg.Resolvable):
    """The range in which a metric is acceptable."""

    least: float | None = Field(default=None, description="Smallest acceptable value; open by default.")
    greatest: float | None = Field(default=None, description="Greatest acceptable value; open by default.")


class MetricChecksComponent(dg.Component, dg.Model, dg.Resolvable):
    """Asset checks that the metrics of a training asset's latest model version are within bounds.

    ```yaml
    type: dagster_mlops.mlflow.MetricChecksComponent
    attributes:
      asset: arrival_delay_model
      bounds:
        auc: {least: 0.7}
        log_loss: {greatest: 0.5}
    ```
    """

    asset: str = Field(description="Key of the training asset.")
    bounds: dict[str, MetricBounds] = Field(description="Acceptable range by metric.")
    blocking: bool = Field(default=True, description="Whether promotion and deployment refuse to go on when one fails.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The checks, which run as one step."""
        bounds = {metric: (bound.least, bound.greatest) for metric, bound in self.bounds.items()}
        return dg.Definitions(asset_checks=metric_checks(asset=self.asset, bounds=bounds, blocking=self.blocking))
