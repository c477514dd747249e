"""Evaluations in YAML."""

from collections.abc import Mapping, Sequence
from typing import Literal

import dagster as dg
from pydantic import Field

from dagster_mlops.core.yaml_fields import Count, FromTemplate, NotNegative, Share, YamlFields
from dagster_mlops.evaluation.asset import evaluation_asset
from dagster_mlops.evaluation.checks import evaluation_checks


class MetricBounds(YamlFields):
    """The range in which a metric is acceptable."""

    least: float | None = Field(default=None, description="Smallest acceptable value; open by default.")
    greatest: float | None = Field(default=None, description="Greatest acceptable value; open by default.")


def ranges(bounds: Mapping[str, MetricBounds]) -> dict[str, tuple[float | None, float | None]]:
    """Bounds by metric, as factories of checks take them."""
    return {metric: (bound.least, bound.greatest) for metric, bound in bounds.items()}


class EvaluationChecks(YamlFields):
    """The arguments of `evaluation_checks`."""

    bounds: dict[str, MetricBounds] = Field(default={}, description="Acceptable range by metric, on all rows.")
    slice_bounds: dict[str, MetricBounds] = Field(default={}, description="The same for each slice.")
    max_drop: dict[str, float] = Field(default={}, description="How much worse than the champion a metric may be.")
    slice_max_drop: dict[str, float] = Field(default={}, description="The same for each slice.")
    decides: Literal["interval", "value"] = Field(
        default="interval", description="The part that must be out of bounds to fail: the whole interval, or the value."
    )
    blocking: bool = Field(default=True, description="Whether promotion refuses to go on when one fails.")

    def build(self, evaluation: dg.AssetsDefinition) -> list[dg.AssetChecksDefinition]:
        """The checks, which run as one step."""
        bounds = {"bounds": ranges(self.bounds), "slice_bounds": ranges(self.slice_bounds)}
        return evaluation_checks(evaluation=evaluation, **{**vars(self), **bounds})


class EvaluationComponent(YamlFields, dg.Component):
    """Measures the version that a training asset made last, on rows it has not seen.

    ```yaml
    type: dagster_mlops.mlflow.EvaluationComponent
    attributes:
      name: arrival_delay_evaluation
      trained: arrival_delay_model
      rows: validation_rows
      label: late
      slices: [carrier, origin, {night: departure_minute >= 1200}]
      card:
        Intended use: Ranks flights at scheduled departure.
      checks:
        bounds: {auc: {least: 0.7}}
        slice_max_drop: {auc: 0.03}
    ```

    The resource that `registry` names, by default ``mlflow`` (an ``MlflowResource``), holds the models. Functions (of
    features, baselines, metrics) come from template variables: ``features: "{{ model_inputs }}"``.
    """

    name: str = Field(description="Name of the asset.")
    trained: str = Field(description="Key of the training asset whose latest version is measured.")
    rows: str = Field(description="Key of an asset that loads as a dataframe, which the model was not trained on.")
    label: str = Field(description="Column of the answers; rows without one are left out and counted.")
    task: Literal["binary", "multiclass", "regression"] | None = Field(
        default=None, description="By default it follows from the labels."
    )
    positive: str | None = Field(default=None, description="Binary: the text label that counts as yes.")
    classes: Sequence[str | int | float] | None = Field(
        default=None, description="All labels that there can be, where the rows hold only some of them."
    )
    features: FromTemplate | None = Field(
        default=None, description="Function of the rows that makes the model's inputs; its signature by default."
    )
    slices: Sequence[str | Mapping[str, str]] = Field(
        default=(), description="Columns to slice by, and {name: condition} such as {night: departure_minute >= 1200}."
    )
    group: str | FromTemplate | None = Field(
        default=None, description="Column, or function of the rows, whose equal values are rows that hang together."
    )
    baselines: dict[str, FromTemplate] = Field(
        default={}, description="Functions of the rows that answer as a model does, by name."
    )
    training_rows: str | None = Field(default=None, description="Key of the asset that baselines learn from.")
    compare_with: str | None = Field(default="champion", description="Alias of the version to compare with.")
    metrics: dict[str, FromTemplate] = Field(
        default={}, description="Functions of labels and predictions, by name: a value per row, or a number."
    )
    lower_is_better: Sequence[str] = Field(default=(), description="Those of these metrics of which less is better.")
    threshold: Share = Field(default=0.5, description="Binary: probability from which a row counts as yes.")
    min_rows: Count = Field(default=50, description="A slice with fewer rows is listed without metrics.")
    resamples: Count = Field(default=1000, description="Resamples of the bootstrap.")
    confidence: Share = Field(default=0.95, description="Confidence level of the intervals.")
    seed: int = Field(default=0, description="Seed of resamples and shuffling.")
    importance_rows: NotNegative = Field(default=2000, description="Rows for permutation importance; 0 leaves it out.")
    card: Mapping[str, str] = Field(default={}, description="Sections of the model card, by title, in Markdown.")
    checks: EvaluationChecks | None = Field(default=None, description="Asset checks on the evaluation.")
    registry: str = Field(default="mlflow", description="Key of the resource that holds the models.")
    group_name: str | None = Field(default=None, description="Asset group.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The evaluation asset and its checks."""
        fields = {name: value for name, value in vars(self).items() if name not in ("checks", "trained")}
        asset = evaluation_asset(**{**fields, "model": self.trained, "importance_rows": int(self.importance_rows)})
        return dg.Definitions(assets=[asset], asset_checks=self.checks.build(asset) if self.checks else [])
