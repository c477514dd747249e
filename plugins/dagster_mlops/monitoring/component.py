"""The alarm of a deployment in YAML."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Literal

import dagster as dg
from pydantic import Field

from dagster_mlops.core.yaml_fields import Count, Positive, ResolvedDuration, Share, YamlFields
from dagster_mlops.monitoring.alarm.asset import alarm_asset
from dagster_mlops.monitoring.live.checks import divergence_checks
from dagster_mlops.monitoring.live.incidents import Persistence
from dagster_mlops.monitoring.live.report_asset import incident_report_asset
from dagster_mlops.monitoring.live.sensor import divergence_sensor


class PersistenceFields(YamlFields):
    """The number of windows that begin an incident, and that of those that end it."""

    needed: Count = Field(default=1, description="Windows above the threshold that begin an incident, …")
    of: Count = Field(default=1, description="… among so many of the last ones.")
    calm: Count = Field(default=3, description="Windows below it after which the incident has recovered.")
    hysteresis: Share = Field(default=0.9, description="Share of the threshold below which a window is calm.")
    quiet: ResolvedDuration = Field(
        default=timedelta(days=1), description="Time without one above it, after which the next is another incident."
    )


class DivergenceAlarmComponent(YamlFields, dg.Component):
    """An alarm when a deployment sees or predicts differently from its history: asset, checks, sensor and report.

    ```yaml
    type: dagster_mlops.monitoring.DivergenceAlarmComponent
    attributes:
      deployment: deployment
      history: scored_flights
      time: time_hour
      columns: [temp, wind_speed, carrier, probability]
      outputs: {probability: output}
      rows: 200
      alarms: 1
      per: {days: 30}
    ```

    It makes the asset `name`, which calibrates the alarm, the checks `divergence` and `blind` of the deployment, the
    sensor that evaluates them, and the asset `<name>_incident`, which each incident materializes once.
    """

    name: str = Field(default="alarm", description="Name of the asset that calibrates the alarm.")
    deployment: dg.ResolvedAssetKey = Field(description="Key of the deployment, or of any asset that has the checks.")
    history: dg.ResolvedAssetKey = Field(
        description="Key of an asset that loads as a dataframe, in which all was well."
    )
    time: str = Field(description="Its column of the times at which the model was asked.")
    columns: Sequence[str] | None = Field(default=None, description="Watched columns; all but the time by default.")
    categories: Sequence[str] = Field(default=(), description="Columns of numbers that stand for categories.")
    outputs: Mapping[str, str] | None = Field(
        default=None,
        description="Place in the model's answer of each column that it predicts: output, output.late, ….",
    )
    rows: Count | None = Field(default=None, description="Rows of a window; or give every.")
    every: ResolvedDuration | None = Field(default=None, description="Length of a window; or give rows.")
    alarms: Positive = Field(default=1.0, description="False alarms that are accepted …")
    per: ResolvedDuration = Field(default=timedelta(days=30), description="… in this time, of all columns together.")
    minimum_effect: Share = Field(default=0.0, description="Share of the rows that has to be distributed differently.")
    zone: str = Field(default="UTC", description="Time zone of the users, such as Europe/Vienna.")
    slow: ResolvedDuration | None = Field(default=None, description="Latency from which a request counts as slow.")
    requests: str | None = Field(
        default=None, description="Folder of a log with the failed and refused requests of the history's time."
    )
    label: str | None = Field(default=None, description="Column of the history's labels, to tell harm from change.")
    prediction: str | None = Field(default=None, description="The one of outputs that is the probability of 1.")
    max_drop: Share = Field(default=0.05, description="Relative drop of ROC AUC or log loss that is harm.")
    labels: dg.ResolvedAssetKey | None = Field(default=None, description="Key of a feedback asset, with later labels.")
    prediction_log: str | None = Field(default=None, description="Folder of the log; the deployment's by default.")
    metrics_file: str | None = Field(default=None, description="File for Prometheus' node exporter, ending in .prom.")
    persistence: PersistenceFields = Field(default=PersistenceFields(), description="Windows that make an incident.")
    patience: ResolvedDuration = Field(
        default=timedelta(seconds=30), description="How long a window by time waits for rows after its end."
    )
    silence: ResolvedDuration | None = Field(
        default=timedelta(hours=1), description="Time without predictions from which the watch is blind; null: never."
    )
    severity: Literal["WARN", "ERROR"] = Field(default="WARN", description="Severity of a failed check.")
    minimum_interval_seconds: Count = Field(default=15, description="Seconds between two looks of the sensor.")
    group_name: str | None = Field(default=None, description="Asset group.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The assets, checks and the sensor."""
        log = {"deployment": self.deployment, "prediction_log": self.prediction_log}
        alarm = alarm_asset(
            name=self.name,
            history=self.history,
            time=self.time,
            columns=self.columns,
            categories=self.categories,
            outputs=self.outputs,
            rows=self.rows,
            every=self.every,
            alarms=self.alarms,
            per=self.per,
            minimum_effect=self.minimum_effect,
            zone=self.zone,
            slow=self.slow,
            label=self.label,
            prediction=self.prediction,
            max_drop=self.max_drop,
            requests=self.requests,
            group_name=self.group_name,
        )
        report = incident_report_asset(name=f"{self.name}_incident", alarm=alarm, group_name=self.group_name, **log)
        sensor = divergence_sensor(
            alarm=alarm,
            report=report,
            labels=self.labels,
            persistence=Persistence(**vars(self.persistence)),
            metrics_file=self.metrics_file,
            patience=self.patience,
            silence=self.silence,
            severity=self.severity,
            minimum_interval_seconds=self.minimum_interval_seconds,
            **log,
        )
        checks = divergence_checks(deployment=self.deployment)
        return dg.Definitions(assets=[alarm, report], asset_checks=[checks], sensors=[sensor])
