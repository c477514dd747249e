"""YAML component for bounds on a training asset's metrics."""

import dagster as dg
from pydantic import Field

from dagster_mlops.core.yaml_fields import YamlFields
from dagster_mlops.evaluation.component import MetricBounds
from dagster_mlops.mlflow.checks import metric_checks


class MetricChecksComponent(YamlFields, dg.Component):
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
    blocking: bool = Field(default=True, description="Whether promotion and deployment stop when a check fails.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The checks, which run as one step."""
        bounds = {metric: (bound.least, bound.greatest) for metric, bound in self.bounds.items()}
        return dg.Definitions(asset_checks=metric_checks(asset=self.asset, bounds=bounds, blocking=self.blocking))
