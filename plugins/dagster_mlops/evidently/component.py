"""Monitoring in YAML."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from dagster_mlops.core.yaml_fields import Count, NotNegative, Share, YamlFields
from dagster_mlops.evidently.checks import data_quality_check, drift_check, performance_check
from dagster_mlops.monitoring import check_components
from dagster_mlops.monitoring.results import Severity


class DriftCheckComponent(YamlFields, dg.Component):
    """Check that an asset's columns are distributed as in a reference asset (Evidently).

    ```yaml
    type: dagster_mlops.evidently.DriftCheckComponent
    attributes:
      asset: predictions
      reference: training_set
      columns: [temp, wind_speed, carrier]
      drift_share: 0.3
      preset:
        per_column_method: {temp: wasserstein}
        per_column_threshold: {temp: 0.3}
    ```

    The resource `evidently` (`EvidentlyResource`) says where reports are kept.
    """

    asset: dg.ResolvedAssetKey = Field(description="Asset that is checked, as group/name.")
    reference: dg.ResolvedAssetKey = Field(description="Asset to compare with; itself: its earlier partition.")
    name: str = Field(default="drift", description="Name of the check.")
    columns: Sequence[str] | None = Field(default=None, description="Compared columns; all that both have by default.")
    drift_share: Share = Field(default=0.5, description="Share of drifted columns from which it fails.")
    alarm_at: NotNegative | None = Field(
        default=3.0, description="A column is an alarm by itself at so many times its threshold; null: none is."
    )
    missing_change: Share = Field(
        default=0.1, description="A column is broken if its share of missing values grows by more."
    )
    new_change: Share = Field(
        default=0.5, description="A column is broken if more of its values are new to the reference."
    )
    importance: Mapping[str, float] | None = Field(default=None, description="Weight in the share by column; 1 else.")
    segment: str | None = Field(default=None, description="Column whose values are compared by themselves as well.")
    min_rows: Count = Field(default=500, description="With fewer rows on a side nothing is judged.")
    preset: Mapping[str, Any] | None = Field(default=None, description="Options of Evidently's DataDriftPreset.")
    reference_partitions: Sequence[str] | None = Field(default=None, description="Partitions of the reference.")
    severity: Severity = Field(default="WARN", description="Severity of drift: WARN or ERROR.")
    blocking: bool = Field(default=False, description="Hold downstream assets back on failure with severity ERROR.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return dg.Definitions(asset_checks=[drift_check(**vars(self))])


class DataQualityCheckComponent(check_components.DataQualityCheckComponent):
    """Check that a dataframe asset has enough rows, and none missing, malformed, out of range, repeated or too old.

    ```yaml
    type: dagster_mlops.evidently.DataQualityCheckComponent
    attributes:
      asset: raw/weather
      columns: [origin, time_hour, temp]
      max_missing_share: {temp: 0.05}
      ranges: {temp: [-30, 120]}
      no_duplicates_of: [origin, time_hour]
      blocking: true
    ```

    The resource `evidently` (`EvidentlyResource`) says where reports are kept.
    """

    tool: str | None = Field(default="evidently", description="Tool that writes a report.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return dg.Definitions(asset_checks=[data_quality_check(**vars(self))])


class PerformanceCheckComponent(check_components.PerformanceCheckComponent):
    """Measure predictions against the labels that have arrived so far; alarm beyond chance only.

    ```yaml
    type: dagster_mlops.evidently.PerformanceCheckComponent
    attributes:
      asset: predictions
      target: late
      prediction: probability
      labels: arrivals
      key: flight_id
      bounds: {roc_auc: 0.65}
    ```

    The resource `evidently` (`EvidentlyResource`) says where reports are kept.
    """

    tool: str | None = Field(default="evidently", description="Tool that writes a report.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        return dg.Definitions(asset_checks=[performance_check(**vars(self))])
