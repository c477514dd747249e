"""Monitoring in YAML."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import dagster as dg
from pydantic import Field

from dagster_mlops.evidently.checks import Severity, data_quality_check, drift_check

_Key = Annotated[dg.AssetKey, dg.Resolver(lambda _, key: dg.AssetKey.from_user_string(key), model_field_type=str)]


class DriftCheckComponent(dg.Component, dg.Model, dg.Resolvable):
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

    asset: _Key = Field(description="Asset that is checked, as group/name.")
    reference: _Key = Field(description="Asset that it is compared with; the same asset means its partition before.")
    name: str = Field(default="drift", description="Name of the check.")
    columns: Sequence[str] | None = Field(default=None, description="Compared columns; all that both have by default.")
    drift_share: float = Field(default=0.5, gt=0, le=1, description="Share of drifted columns from which it fails.")
    min_rows: int = Field(default=500, ge=1, description="With fewer rows on a side nothing is judged.")
    preset: Mapping[str, Any] | None = Field(default=None, description="Options of Evidently's DataDriftPreset.")
    reference_partitions: Sequence[str] | None = Field(default=None, description="Partitions of the reference.")
    severity: Severity = Field(default="WARN", description="Severity of drift: WARN or ERROR.")
    blocking: bool = Field(default=False, description="Hold downstream assets back on failure with severity ERROR.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return dg.Definitions(asset_checks=[drift_check(**fields)])


class DataQualityCheckComponent(dg.Component, dg.Model, dg.Resolvable):
    """Check that a dataframe asset has enough rows, and none missing, malformed, out of range or repeated.

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

    asset: _Key = Field(description="Asset that is checked, as group/name.")
    name: str = Field(default="data_quality", description="Name of the check.")
    columns: Sequence[str] | None = Field(default=None, description="Columns that must be there; all by default.")
    max_missing_share: float | Mapping[str, float] = Field(default=1.0, description="Allowed missing share.")
    max_malformed_share: float = Field(default=0.0, ge=0, le=1, description="Allowed malformed share.")
    min_rows: int = Field(default=1, ge=0, description="Fewest rows.")
    ranges: Mapping[str, tuple[float, float]] | None = Field(default=None, description="Lowest and highest by column.")
    no_duplicates_of: Sequence[str] | None = Field(default=None, description="Columns that identify a row.")
    severity: Severity = Field(default="ERROR", description="Severity of a finding: WARN or ERROR.")
    blocking: bool = Field(default=False, description="Hold downstream assets back on failure with severity ERROR.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return dg.Definitions(asset_checks=[data_quality_check(**fields)])
