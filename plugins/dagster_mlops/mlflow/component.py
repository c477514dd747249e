"""YAML component for bounds on a training asset's metrics."""

import dagster as dg
from pydantic import Field

from dagster_mlops.core.yaml_fields import YamlFields
from dagster_mlops.evaluation.component import MetricBounds, ranges
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
        return dg.Definitions(asset_checks=metric_checks(**{**vars(self), "bounds": ranges(self.bounds)}))
