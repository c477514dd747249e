"""Batches of predictions in YAML."""

from collections.abc import Sequence

import dagster as dg
from pydantic import Field

from dagster_mlops.core.yaml_fields import Count, ResolvedPartitions, YamlFields
from dagster_mlops.serving.batch import batch_predictions_asset


class BatchPredictionsComponent(YamlFields, dg.Component):
    """Predictions of the promoted model version for the rows of an asset, partition by partition.

    ```yaml
    type: dagster_mlops.bentoml.BatchPredictionsComponent
    attributes:
      promoted: champion
      rows: flights_of_the_day
      key: [flight_id]
      columns: [flight_id]
      prediction_log: state/serving/predictions
      partitions_def: {every: day, start: "2026-01-01"}
    ```

    The resource that `registry` names, by default ``mlflow`` (an ``MlflowResource``), holds the models.
    """

    name: str = Field(default="predictions", description="Name of the asset.")
    promoted: dg.ResolvedAssetKey = Field(description="Key of the asset that holds the promoted ModelVersion record.")
    rows: dg.ResolvedAssetKey = Field(description="Key of an asset that loads as a dataframe with the features.")
    key: Sequence[str] = Field(default=(), description="Columns whose values name a row of a partition.")
    columns: Sequence[str] = Field(default=(), description="Columns of the rows that the predictions have, too.")
    prediction_log: str | None = Field(default=None, description="Prediction log to which they are appended.")
    chunk_rows: Count = Field(default=20_000, description="Rows of one call of the model, and of one write to the log.")
    registry: str = Field(default="mlflow", description="Key of the resource that holds the models.")
    partitions_def: ResolvedPartitions | None = Field(default=None, description="Partitions of the asset.")
    io_manager_key: str | None = Field(default=None, description="Resource that stores the predictions.")
    group_name: str | None = Field(default=None, description="Asset group.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The asset."""
        return dg.Definitions(assets=[batch_predictions_asset(**vars(self))])
