"""Batches of predictions, and their labels, in YAML."""

from collections.abc import Sequence
from typing import Literal

import dagster as dg
from pydantic import Field

from dagster_mlops.core.yaml_fields import Count, ResolvedDuration, ResolvedPartitions, YamlFields
from dagster_mlops.serving.batch.asset import batch_predictions_asset
from dagster_mlops.serving.feedback.asset import feedback_asset


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


class FeedbackComponent(YamlFields, dg.Component):
    """The predictions of a log, each with its label once that has arrived.

    ```yaml
    type: dagster_mlops.bentoml.FeedbackComponent
    attributes:
      prediction_log: state/serving/predictions
      labels: arrivals
      label: late
      time: landed_at
      key: flight_id
      within: {days: 2}
    ```
    """

    name: str = Field(default="feedback", description="Name of the asset.")
    prediction_log: str = Field(description="Folder of the prediction log.")
    labels: dg.ResolvedAssetKey = Field(description="Key of an asset that loads as a dataframe of labels.")
    label: str = Field(description="Column of the labels.")
    time: str = Field(description="Column of the times at which they became known, with a time zone.")
    key: str = Field(default="request_id", description="Column that both have: request_id, or the key of an entity.")
    within: ResolvedDuration | None = Field(default=None, description="Longest time from a prediction to its label.")
    take: Literal["first", "last"] = Field(default="last", description="The label that counts where several do.")
    deployment: str | None = Field(default=None, description="The deployment or batch whose predictions are taken.")
    columns: Sequence[str] | None = Field(default=None, description="Features that the asset has; all by default.")
    keep: ResolvedDuration | None = Field(default=None, description="Time for which a prediction stays in it.")
    state_dir: str | None = Field(default=None, description="Folder of cursor and predictions, without partitions.")
    partitions_def: ResolvedPartitions | None = Field(default=None, description="Partitions of the asset.")
    io_manager_key: str | None = Field(default=None, description="Resource that stores the rows.")
    group_name: str | None = Field(default=None, description="Asset group.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The asset."""
        return dg.Definitions(assets=[feedback_asset(**vars(self))])
