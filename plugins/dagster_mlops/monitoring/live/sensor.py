"""A sensor that judges each window of a deployment's prediction log by itself, without a run."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import dagster as dg

from dagster_mlops.core.argument_types import refuse_mistyped
from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.options import known_options
from dagster_mlops.core.terminal import error_line
from dagster_mlops.core.upstream import target_of
from dagster_mlops.errors import DeploymentError, MonitoringError
from dagster_mlops.monitoring.alarm.value import Alarm
from dagster_mlops.monitoring.facts import REPEATED, WINDOW_END
from dagster_mlops.monitoring.live import evaluations, metrics, sight
from dagster_mlops.monitoring.live.asset_values import latest_value
from dagster_mlops.monitoring.live.harm import incident_harm
from dagster_mlops.monitoring.live.incidents import Persistence
from dagster_mlops.monitoring.live.progress import Progress
from dagster_mlops.monitoring.live.state_files import StateFiles
from dagster_mlops.monitoring.live.watch import Verdict, Watch
from dagster_mlops.monitoring.performance.harm import Harm
from dagster_mlops.provenance import mask_credentials
from dagster_mlops.serving.checks import live_record

_REPEATED = 20  # evaluations among which the last window is looked for
_ALARMS: dict[dg.AssetKey, tuple[Any, Alarm]] = {}  # the last one loaded, with the value that it is of


def divergence_sensor(
    *,
    deployment: AssetLike,
    alarm: AssetLike,
    prediction_log: str | Path | None = None,
    state_dir: str | Path | None = None,
    report: AssetLike | None = None,
    labels: AssetLike | None = None,
    metrics_file: str | Path | None = None,
    name: str | None = None,
    check: str = evaluations.DIVERGENCE,
    persistence: Persistence = Persistence(),  # noqa: B008 - it cannot change
    patience: timedelta = timedelta(seconds=30),
    silence: timedelta | None = timedelta(hours=1),
    severity: Literal["WARN", "ERROR"] = "WARN",
    seconds: float = 20,
    minimum_interval_seconds: int = 15,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
    **sensor_options: Any,
) -> dg.SensorDefinition:
    """A sensor that reads the prediction log of a deployment and judges each window by an alarm, without a run.

        sensors = [divergence_sensor(deployment=deployment, alarm="delay_alarm")]

    Each window is an evaluation of the check `check` of the deployment, and each change of what the watch sees one of
    ``blind``; :func:`divergence_check` defines both for the UI. Rows are read once. A daemon that is killed judges no
    window twice and leaves none out.

    Args:
        deployment: A ``deployment_asset``, whose prediction log this machine can read; or, with `prediction_log`, any
            asset, which has the checks.
        alarm: An ``alarm_asset``.
        prediction_log: Folder of the log; that of the deployment unless given.
        state_dir: Folder for what was read and counted so far; a folder in that of the log unless given.
        report: An ``incident_report_asset``, which a run materializes once for each incident.
        labels: A ``feedback_asset``: where the alarm has a `label`, an incident with 200 labels is harmful or benign by
            them, and by an estimate until then. It is loaded once for each materialization, while an incident is open.
        metrics_file: File for Prometheus' node exporter, which ends in ``.prom``: score, threshold, open incident, last
            look. A file that cannot be written is a line in the sensor's log.
        persistence: Windows that make an incident and end it.
        patience: How long after its end a window by time waits for rows of requests that take long.
        silence: Time without predictions after which the watch counts as blind. None for traffic that may stop.
        severity: Severity of an evaluation that fails, unless harm is known: harmful is an ERROR, benign a WARN.
        seconds: Longest time of reading in one evaluation of the sensor; Dagster ends one after 60 seconds.
        sensor_options: Anything else that :func:`dagster.sensor` takes.
    """
    refuse_mistyped(divergence_sensor, locals())
    key, alarm_key = asset_key(deployment), asset_key(alarm)
    id = dg.AssetCheckKey(key, check)
    report_key, labels_key = (asset_key(each) if each else None for each in (report, labels))
    options = {"job", "jobs", "job_name", "target", "asset_selection"} & set(sensor_options)
    target: dict[str, Any] = {} if options else {"asset_selection": [report_key or key]}
    refuse_useless(
        f"divergence_sensor of {key.to_user_string()}",
        {
            **persistence.faults(),
            f"patience={patience} is not from 0 to a day": not timedelta(0) <= patience <= timedelta(days=1),
            f"silence={silence} is not more than 0": silence is not None and silence <= timedelta(0),
            f"minimum_interval_seconds={minimum_interval_seconds} is less than 1": minimum_interval_seconds < 1,
            f"seconds={seconds} is not between 1 and 45": not 1 <= seconds <= 45,
            f"metrics_file={str(metrics_file)!r} does not end in .prom": Path(metrics_file or ".prom").suffix != ".prom"
            and metrics_file is not None,
            f"severity={severity!r} is neither 'WARN' nor 'ERROR'": severity not in ("WARN", "ERROR"),
        },
    )

    @dg.sensor(
        name=name or f"{'_'.join(key.path)}_divergence",
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        **{
            "description": f"Judges what {key.to_user_string()} predicts, window by window.",
            **target,
            **known_options(sensor_options, dg.sensor),
        },
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            log = Path(prediction_log or live_record(context, key).prediction_log)
        except DeploymentError:
            return dg.SkipReason(f"{key.to_user_string()} was never deployed.")
        time, judged = datetime.now(UTC), target_of(context.instance, key)
        log = log.expanduser().resolve()
        folder = Path(state_dir or log / "watches", *key.path, check).expanduser().resolve()
        files = StateFiles(folder)
        try:
            alarm = load_alarm(context, alarm_key)
            watch = Watch(alarm, log, persistence, patience, seconds)
            before = _progress(context, files)
            step = watch.step(before or watch.begin(_latest_window(context.instance, id) or time), time)
            is_news = step.rows or step.verdicts or not before
            cursor = files.write(step.progress, context.cursor) if is_news else context.cursor
        except Exception as error:
            is_ours = isinstance(error, MonitoringError)
            text = str(error) if is_ours else f"the watch crashed: {mask_credentials(error_line(error))}"
            context.log.error(text, exc_info=not is_ours)
            blind = sight.evaluations(context.instance, key, judged, time, [text], {})
            return dg.SensorResult(asset_events=blind, cursor=context.cursor)
        latest = _latest_window(context.instance, id) if step.verdicts else None
        harms = _harms(context, step.verdicts, alarm, log, labels_key)
        events = [
            evaluations.divergence(
                verdict,
                alarm,
                key,
                judged,
                name=check,
                severity=severity,
                judged_at=time,
                late=step.progress.late,
                harm=harms.get(verdict.incident.id) if verdict.incident and verdict.state == "detected" else None,
            )
            for verdict in step.verdicts
            # The daemon stores a cursor after the events: where it was killed between them, they are there already.
            if latest is None or verdict.end > latest
        ]
        reasons = sight.reasons(step, time, silence, log)
        blind = sight.evaluations(context.instance, key, judged, time, reasons, sight.how_far(step, time))
        if metrics_file:
            try:
                metrics.write(
                    Path(metrics_file), step, asset=key.to_user_string(), check=check, time=time, blind=reasons
                )
            except Exception as error:  # noqa: BLE001 - numbers for a screen never cost a verdict
                context.log.error(f"The metrics cannot be written: {type(error).__name__}: {error}")
        incidents = {
            verdict.incident.id for verdict in step.verdicts if verdict.incident and verdict.state == "detected"
        }
        runs = (
            [dg.RunRequest(run_key=f"{key.to_user_string()}:{check}:{id}") for id in sorted(incidents)]
            if report
            else []
        )
        return dg.SensorResult(
            asset_events=[*events, *blind],
            cursor=cursor,
            run_requests=runs,
            skip_reason=None if events else f"{step.rows} new predictions; no window has ended.",
        )

    return watch


def _harms(
    context: dg.SensorEvaluationContext,
    verdicts: Sequence[Verdict],
    alarm: Alarm,
    log: Path,
    labels: dg.AssetKey | None,
) -> dict[str, Harm]:
    """The harm of each incident, as of its last window in this tick, if there is one as of the last that alarms."""
    detected = [verdict for verdict in verdicts if verdict.incident and verdict.state == "detected"]
    detected.sort(key=lambda verdict: (bool(verdict.judgement and verdict.judgement.alarming), verdict.end))
    last = {verdict.incident.id: verdict for verdict in detected if verdict.incident}
    harms: dict[str, Harm] = {}
    for incident, verdict in last.items():
        try:
            if harm := incident_harm(context, verdict, alarm, log, labels):
                harms[incident] = harm
        except Exception as error:  # noqa: BLE001 - it never costs a verdict
            context.log.error(f"Harm is not judged: {mask_credentials(error_line(error))}")
    return harms


def load_alarm(context: dg.SensorEvaluationContext, key: dg.AssetKey) -> Alarm:
    """The latest alarm of an ``alarm_asset``, through its IO manager, once for each materialization.

    Raises:
        MonitoringError: It was never materialized, or cannot be loaded.
    """
    value = latest_value(context, key, "the alarm")
    if value is None:
        raise MonitoringError(
            f"{key.to_user_string()} was never materialized. Materialize it: it calibrates the alarm."
        )
    stored = _ALARMS.get(key)
    if stored and stored[0] is value:
        return stored[1]
    alarm = Alarm.from_dict(value) if isinstance(value, Mapping) else value
    if not isinstance(alarm, Alarm):
        raise MonitoringError(f"{key.to_user_string()} holds a {type(value).__name__}, not an alarm of alarm_asset.")
    _ALARMS[key] = value, alarm
    return alarm


def _progress(context: dg.SensorEvaluationContext, files: StateFiles) -> Progress | None:
    """The progress so far; None for a watch that begins, or begins anew, after the last window that has a verdict."""
    if not context.cursor:
        return None
    try:
        return files.read(context.cursor)
    except MonitoringError as error:
        context.log.error(f"{error} The watch goes on with the rows after the last window that has a verdict.")
        return None


def _latest_window(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> datetime | None:
    """The end of the last window that has an evaluation. A run of the check may have repeated an earlier one since.

    Dagster finds the latest evaluation by an index, and sorts all of a check's for its history.
    """
    latest = instance.get_latest_asset_check_evaluation_record(check)
    if latest is None:
        return None
    is_verdict = isinstance(latest.evaluation, dg.AssetCheckEvaluation) and REPEATED not in latest.evaluation.metadata
    storage, ends = instance.event_log_storage, []
    for record in [latest] if is_verdict else storage.get_asset_check_execution_history(check, limit=_REPEATED):
        if isinstance(record.evaluation, dg.AssetCheckEvaluation):
            with suppress(TypeError, ValueError, KeyError):
                ends.append(datetime.fromisoformat(str(record.evaluation.metadata[WINDOW_END].value)))
    return max(ends, default=None)
