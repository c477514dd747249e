"""An asset that shows the latest incident of a deployment: pictures and numbers, made by a run after the alarm."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.argument_types import refuse_mistyped
from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
from dagster_mlops.core.options import asset_with
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring import facts
from dagster_mlops.monitoring.alarm.value import Alarm
from dagster_mlops.monitoring.live import evaluations
from dagster_mlops.monitoring.live.log_rows import of_alarm
from dagster_mlops.serving.checks import live_record
from dagster_mlops.serving.runtime import PredictionLog

_WINDOWS = 500  # of which the scores are drawn


def incident_report_asset(
    *,
    name: str = "incident_report",
    deployment: AssetLike,
    alarm: AssetLike | dg.AssetIn,
    prediction_log: str | Path | None = None,
    check: str = evaluations.DIVERGENCE,
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset with the rows of the last window that was an alarm, and pictures of what is other than expected.

        incident_report_asset(deployment=deployment, alarm="delay_alarm")

    Name it in ``divergence_sensor(report=…)``, and each incident materializes it once, after its verdict. It can be
    materialized by hand at any time. Where no window was an alarm, it shows the last one.

    The value is a dataframe: the window's rows as :meth:`PredictionLog.read` gives them, for whoever looks further.

    Args:
        deployment: The asset whose windows are judged.
        alarm: An ``alarm_asset``.
        prediction_log: Folder of the log; that of the deployment unless given.
        check: The check of :func:`divergence_sensor`.
        asset_options: Anything else that :func:`dagster.asset` takes.
    """
    refuse_mistyped(incident_report_asset, locals())
    key = asset_key(deployment)

    def report(context: dg.AssetExecutionContext, alarm: Any) -> dg.MaterializeResult:
        from dagster_mlops.monitoring.alarm import pictures  # for steps, not for code locations
        from dagster_mlops.monitoring.windows import Window

        calibrated = Alarm.from_dict(alarm)
        history = _windows(context.instance, dg.AssetCheckKey(key, check))
        if not history:
            raise MonitoringError(f"no window of {key.to_user_string()} was judged yet. Switch on its sensor first.")
        window = _worst(history)
        start, end = (datetime.fromisoformat(window[name]) for name in (facts.WINDOW_START, facts.WINDOW_END))
        log = prediction_log or live_record(context, key).prediction_log
        rows = of_alarm(PredictionLog.read(log, start, end), calibrated)
        counts = calibrated.detector.profile.count(rows, times=rows["timestamp"])
        scored = [each for each in history if facts.SCORE in each]
        names = [name for name in str(window.get(facts.INCIDENT_COLUMNS, "")).split(", ") if name]
        worst = [row["column"] for row in window.get(facts.COLUMNS, [])]
        metadata: dict[str, Any] = {
            name: window[name]
            for name in (facts.STATE, facts.INCIDENT, facts.WINDOW_START, facts.WINDOW_END)
            if name in window
        }
        metadata |= {facts.ROWS: len(rows), "monitoring/description": window["description"]}
        metadata |= pictures.columns(
            "monitoring/plot", Window(start, end, counts), calibrated.detector, list(dict.fromkeys([*names, *worst]))
        )
        ends = [datetime.fromisoformat(each[facts.WINDOW_END]) for each in scored]
        values = [float(each[facts.SCORE]) for each in scored]
        metadata |= pictures.scores(facts.SCORES, ends, values, calibrated.detector.threshold)
        return dg.MaterializeResult(value=rows, metadata=metadata)

    return asset_with(
        asset_options,
        name=name,
        description=f"What the last alarm of {key.to_user_string()} was about.",
        dagster_type=dg.Any,
        deps=[key],
        ins={"alarm": asset_input(alarm)},
    )(report)


def _windows(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> list[Mapping[str, Any]]:
    """The metadata of the last windows' evaluations as plain values, oldest first, each window once."""
    windows: dict[str, Mapping[str, Any]] = {}
    for record in instance.event_log_storage.get_asset_check_execution_history(check, limit=_WINDOWS):
        if isinstance(record.evaluation, dg.AssetCheckEvaluation):
            metadata = record.evaluation.metadata
            values = {name: _plain(value) for name, value in metadata.items()}
            if facts.WINDOW_END in values:
                values["description"] = record.evaluation.description or ""
                windows.setdefault(str(values[facts.WINDOW_END]), values)
    return [windows[end] for end in sorted(windows, key=datetime.fromisoformat)]


def _worst(windows: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The window with the largest score of the latest incident; the last window where there was none."""
    detected = [window for window in windows if window[facts.STATE] == "detected"]
    if not detected:
        return windows[-1]
    same = [window for window in detected if window[facts.INCIDENT] == detected[-1][facts.INCIDENT]]
    return max(same, key=lambda window: window.get(facts.SCORE, 0.0))


def _plain(value: Any) -> Any:
    if isinstance(value, dg.TableMetadataValue):
        return [record.data for record in value.records]
    return getattr(value, "value", None)
