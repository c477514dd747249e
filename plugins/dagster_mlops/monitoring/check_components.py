"""Checks of data quality and performance in YAML."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from dagster_mlops.core.yaml_fields import (
    Count,
    CountFromZero,
    NotNegative,
    ResolvedDuration,
    Share,
    Shares,
    YamlFields,
)
from dagster_mlops.monitoring.performance.check import performance_check
from dagster_mlops.monitoring.quality.check import data_quality_check
from dagster_mlops.monitoring.quality.expectations import LESSONS, Lesson
from dagster_mlops.monitoring.results import Severity

Kinds = Literal["number", "category", "date"]


class DataQualityCheckComponent(YamlFields, dg.Component):
    """Check that a dataframe asset has enough rows, and none missing, malformed, out of range, repeated or too old.

    ```yaml
    type: dagster_mlops.monitoring.DataQualityCheckComponent
    attributes:
      asset: raw/weather
      reference: raw/good_weather
      max_missing_share: {temp: 0.05}
      ranges: {temp: [-30, 120]}
      at_least: {temp: dewp}
      no_duplicates_of: [origin, time_hour]
      time: time_hour
      max_age: {hours: 3}
      blocking: true
    ```
    """

    asset: dg.ResolvedAssetKey = Field(description="Asset that is checked, as group/name.")
    name: str = Field(default="data_quality", description="Name of the check.")
    columns: Sequence[str] | None = Field(default=None, description="Columns that must be there; all by default.")
    max_missing_share: Shares = Field(default=1.0, description="Allowed share of missing values, of all or by column.")
    max_malformed_share: Share = Field(default=0.0, description="Allowed malformed share.")
    min_rows: CountFromZero = Field(default=1, description="Fewest rows.")
    max_rows: Count | None = Field(default=None, description="Most rows.")
    types: Mapping[str, Kinds] | None = Field(default=None, description="number, category or date by column.")
    ranges: Mapping[str, tuple[float, float]] | None = Field(
        default=None, description="Lowest and highest value by column."
    )
    categories: Mapping[str, Sequence[Any]] | None = Field(default=None, description="Allowed values by column.")
    at_least: Mapping[str, str] | None = Field(default=None, description="Column, and one that is never greater.")
    no_duplicates_of: Sequence[str] | None = Field(default=None, description="Columns that identify a row.")
    time: str | None = Field(default=None, description="Column of times.")
    max_age: ResolvedDuration | None = Field(default=None, description="How old the newest time may be, {hours: 3}.")
    reference: dg.ResolvedAssetKey | None = Field(default=None, description="Asset that was good, to learn from.")
    reference_partitions: Sequence[str] | None = Field(default=None, description="Partitions of the reference.")
    learn: Sequence[Lesson] = Field(default=LESSONS, description="Parts that are learnt from the reference.")
    tolerance: Share = Field(default=0.01, description="Share of rows that may differ from the reference.")
    tool: str | None = Field(default=None, description="Tool that writes a report, such as evidently.")
    severity: Severity = Field(default="ERROR", description="Severity of a finding: WARN or ERROR.")
    blocking: bool = Field(default=False, description="Hold downstream assets back on failure with severity ERROR.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return dg.Definitions(asset_checks=[data_quality_check(**vars(self))])


class PerformanceCheckComponent(YamlFields, dg.Component):
    """Measure predictions against the labels that have arrived so far; alarm beyond chance only.

    ```yaml
    type: dagster_mlops.monitoring.PerformanceCheckComponent
    attributes:
      asset: predictions
      target: late
      prediction: probability
      labels: arrivals
      key: flight_id
      reference: validation_predictions
      bounds: {roc_auc: 0.65}
      max_drop: 0.05
    ```
    """

    asset: dg.ResolvedAssetKey = Field(description="Asset that is checked, as group/name.")
    target: str = Field(description="Column of the labels.")
    prediction: str = Field(description="Column of the predictions.")
    bounds: Mapping[str, float | tuple[float | None, float | None]] | None = Field(
        default=None, description="Worst allowed value by metric, or [least, greatest]."
    )
    metrics: Sequence[str] | None = Field(default=None, description="Metrics that are compared with the reference.")
    task: Literal["classification", "regression"] = Field(
        default="classification", description="classification or regression."
    )
    name: str = Field(default="performance", description="Name of the check.")
    labels: dg.ResolvedAssetKey | None = Field(default=None, description="Asset that holds the labels.")
    key: str | None = Field(default=None, description="Column that identifies a prediction in both assets.")
    time: str | None = Field(default=None, description="Column to sort both sides by.")
    segment: str | None = Field(default=None, description="Column whose values are judged by themselves as well.")
    reference: dg.ResolvedAssetKey | None = Field(default=None, description="Asset to compare with.")
    reference_partitions: Sequence[str] | None = Field(default=None, description="Partitions of the reference.")
    max_drop: NotNegative = Field(default=0.1, description="Smallest relative drop that matters.")
    false_alarm_rate: Share = Field(default=0.01, description="Share of evaluations that may alarm without a change.")
    threshold: Share = Field(default=0.5, description="Probability from which a row counts as predicted 1.")
    min_labels: Count = Field(default=200, description="With fewer labelled rows nothing is judged.")
    tool: str | None = Field(default=None, description="Tool that writes a report, such as evidently.")
    severity: Severity = Field(default="WARN", description="Severity of worse performance: WARN or ERROR.")
    blocking: bool = Field(default=False, description="Hold downstream assets back on failure with severity ERROR.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return dg.Definitions(asset_checks=[performance_check(**vars(self))])
