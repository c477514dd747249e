"""A sensor that answers an incident with a run, such as a training, within limits that no loop can exceed."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import dagster as dg

from dagster_mlops.core.argument_types import refuse_mistyped
from dagster_mlops.core.asset_keys import asset_key
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.options import known_options
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.alerts.alert import Evaluation
from dagster_mlops.monitoring.facts import HARM

_WEEK = timedelta(days=7)
_TARGETS = {"job", "jobs", "job_name", "target", "asset_selection"}


class _Past(NamedTuple):
    """The open incident, when it began, the last one that a run was requested for, and the times of such requests."""

    incident: str = ""
    since: str = ""
    answered: str = ""
    requests: tuple[str, ...] = ()


def response_sensor(
    *,
    check: str,
    name: str | None = None,
    after: timedelta = timedelta(0),
    cool_off: timedelta = timedelta(days=1),
    runs_per_week: int = 2,
    ready: Callable[[dg.SensorEvaluationContext], str | None] | None = None,
    answer_benign: bool = False,
    minimum_interval_seconds: int = 30,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
    **sensor_options: Any,
) -> dg.SensorDefinition:
    """A sensor that requests one run for each incident of an asset check, and so many a week at most.

        response_sensor(check="deployment:divergence", asset_selection=["training_set", "delay_model"], ready=labels)

    Give the ``job`` or ``asset_selection`` that it runs: a training, a deployment of the version before as a shadow, a
    report. What must hold before its result serves is still decided by your gates. An incident that is over, or that a
    run was requested for, is not answered again; where a limit stops it, it is answered when the limit allows, if it is
    still open. The tick says which limit it is.

    Args:
        check: The asset check, as ``asset:check``.
        after: How long an incident has to be open.
        cool_off: Time from one run to the next. It should be longer than a run takes until its result serves.
        runs_per_week: Most runs in seven days, so that one that fixes nothing is not repeated for each incident.
        ready: Function of the sensor's context that returns why it is too early, such as too few new labels.
        answer_benign: Answer incidents that a watch calls benign (``monitoring/harm``), too.
        sensor_options: Anything else that :func:`dagster.sensor` takes.
    """
    refuse_mistyped(response_sensor, locals())
    asset, _, check_name = check.rpartition(":")
    no_time = timedelta(0)
    refuse_useless(
        f"response_sensor {name or ''}",
        {
            f"check={check!r} does not name asset and check, such as 'deployment:divergence'": not asset
            or not check_name,
            f"after={after} is less than 0": after < no_time,
            f"cool_off={cool_off} is less than 0": cool_off < no_time,
            f"minimum_interval_seconds={minimum_interval_seconds} is less than 1": minimum_interval_seconds < 1,
            f"runs_per_week={runs_per_week} is less than 1": runs_per_week < 1,
            f"give what it runs: {', '.join(sorted(_TARGETS))}": not _TARGETS & set(sensor_options),
        },
    )
    key = dg.AssetCheckKey(asset_key(asset), check_name)

    def obstacle(context: dg.SensorEvaluationContext, past: _Past, harm: str | None, time: datetime) -> str:
        """The limit that stops a run for the open incident; empty if none does."""
        requests = [datetime.fromisoformat(each) for each in past.requests]
        if past.answered == past.incident:
            return "a run was requested for it"
        if harm == "benign" and not answer_benign:
            return "it is benign so far"
        if time - datetime.fromisoformat(past.since) < after:
            return f"it is open for less than {after}"
        if requests and time - requests[-1] < cool_off:
            return f"the last run was requested less than {cool_off} ago"
        if len(requests) >= runs_per_week:
            return f"{runs_per_week} runs were requested in the last seven days"
        reason = (ready(context) if ready else None) or ""
        if not isinstance(reason, str):
            raise MonitoringError(f"ready has returned {reason!r}. Return None for a run, or else why it is too early.")
        return reason

    @dg.sensor(
        name=name or f"{'_'.join(key.asset_key.path)}_{check_name}_response",
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        **{"description": f"Answers each incident of {check} with a run.", **known_options(sensor_options, dg.sensor)},
    )
    def response(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        time = datetime.now(UTC)
        try:
            past = _Past(**json.loads(context.cursor or "{}"))
        except (ValueError, TypeError) as error:  # which runs it has requested is not known
            raise MonitoringError(f"the cursor cannot be read ({error}). Reset it in Dagster to begin anew.") from error
        recent = tuple(each for each in past.requests if time - datetime.fromisoformat(each) < _WEEK)
        evaluation = _latest(context.instance, key)
        past = _with(past._replace(requests=recent), evaluation)
        if not past.incident:
            return dg.SensorResult(cursor=json.dumps(past._asdict()), skip_reason=f"{check} has no open incident.")
        harm = evaluation.metadata.get(HARM) if evaluation else None
        if reason := obstacle(context, past, harm, time):
            text = f"Incident {past.incident} of {check}: {reason}."
            return dg.SensorResult(cursor=json.dumps(past._asdict()), skip_reason=text)
        tags = {"dagster_mlops/check": check, "dagster_mlops/incident": past.incident}
        request = dg.RunRequest(run_key=f"{check}:{past.incident}", tags=tags)
        past = past._replace(answered=past.incident, requests=(*recent, time.isoformat()))
        return dg.SensorResult(run_requests=[request], cursor=json.dumps(past._asdict()))

    return response


def _latest(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> Evaluation | None:
    record = instance.get_latest_asset_check_evaluation_record(key)
    return Evaluation.of(record) if record and isinstance(record.evaluation, dg.AssetCheckEvaluation) else None


def _with(past: _Past, evaluation: Evaluation | None) -> _Past:
    """The past with the incident that the last evaluation is of."""
    if evaluation is None or evaluation.undecided:
        return past
    if evaluation.passed:
        return past._replace(incident="", since="")
    time = evaluation.time.isoformat()
    id = evaluation.incident or past.incident or time
    return past if id == past.incident else past._replace(incident=id, since=time)
