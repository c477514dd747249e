"""A sensor that tells people of failed asset checks, since a check that fails tells no one by itself.

Dagster's own alerts are for runs: a failed check does not fail its run, and an evaluation by a sensor has no run
(https://github.com/dagster-io/dagster/issues/29896).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

import dagster as dg

from dagster_mlops.core.argument_types import refuse_mistyped
from dagster_mlops.core.asset_keys import asset_key
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.options import known_options
from dagster_mlops.core.terminal import error_line
from dagster_mlops.monitoring.alerts.acknowledgement import acknowledged_by
from dagster_mlops.monitoring.alerts.alert import Alert, Case, Evaluation
from dagster_mlops.tools import answer_within

_FEW, _MOST = 50, 1_000  # evaluations of a check that a tick reads
_RUNS_END = timedelta(days=1)  # a check whose run has not ended by then died with it
_FORM = 1
_SEND, _TICK = 20, 40  # seconds of one call of send, and of all of a tick


def alert_sensor(
    *,
    checks: Sequence[str],
    send: Callable[[Alert, dg.SensorEvaluationContext], object],
    name: str = "alerts",
    remind_after: timedelta | None = timedelta(hours=8),
    cooldown: timedelta = timedelta(hours=1),
    tell_recovery: bool = True,
    send_benign: bool = False,
    minimum_interval_seconds: int = 15,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
    **sensor_options: Any,
) -> dg.SensorDefinition:
    """A sensor that calls `send` once for each incident of the named checks, whoever evaluates them.

        def page(alert: Alert, context: dg.SensorEvaluationContext) -> None:
            context.resources.slack.get_client().chat_postMessage(channel="#ml", text=f"{alert.title}: {alert.text}")

        alert_sensor(checks=["deployment:divergence", "deployment:blind"], send=page, required_resource_keys={"slack"})

    An incident begins with an evaluation that fails and ends with one that passes. Where the evaluation names one, as
    those of :func:`divergence_sensor` do, that incident counts. One that begins within `cooldown` after the end of the
    last one continues it: nothing is sent. Evaluations that could not judge change nothing. The first tick tells of
    checks that fail already.

    Where `send` raises or takes longer than 20 seconds, it is called again in the next tick, and what follows it waits:
    an alert may come twice, when the daemon is killed right after it, and is never lost.

    Args:
        checks: Asset checks, each as ``asset:check``.
        send: Function of the :class:`Alert` and the sensor's context, whose ``resources`` are those that
            `required_resource_keys` names.
        remind_after: How long an incident stays open until it is sent again, unless someone has acknowledged it with
            ``dagster-mlops acknowledge``. None sends it once.
        cooldown: How soon after its end an incident continues, rather than being another.
        send_benign: Send incidents that a watch calls benign (``monitoring/harm``), too, with severity WARN. By default
            they stay on the asset's page, and one is sent when it turns out to be harmful, or undecided.
        tell_recovery: Send the end of an incident as well.
        sensor_options: Anything else that :func:`dagster.sensor` takes.
    """
    refuse_mistyped(alert_sensor, locals())
    malformed = [check for check in checks if not all(str(check).rpartition(":")[::2])]
    no_time = timedelta(0)
    refuse_useless(
        f"alert_sensor {name!r}",
        {
            f"checks={checks!r} names no check, such as 'predictions:drift'": not checks,
            f"{malformed} do not name asset and check, such as 'predictions:drift'": bool(malformed),
            f"remind_after={remind_after} is not more than 0": remind_after is not None and remind_after <= no_time,
            f"minimum_interval_seconds={minimum_interval_seconds} is less than 1": minimum_interval_seconds < 1,
            f"cooldown={cooldown} is less than 0": cooldown < no_time,
        },
    )
    keys = {check: dg.AssetCheckKey(asset_key(check.rpartition(":")[0]), check.rpartition(":")[2]) for check in checks}

    hanging: set[str] = set()  # checks for which a call of send has not returned

    def sent(alert: Alert, context: dg.SensorEvaluationContext, deadline: float) -> None:
        """Call `send`, for a part of the tick: Dagster ends one after a minute, and forgets what was sent in it."""
        left = min(deadline - monotonic(), _SEND)
        if alert.check in hanging or left < 1:
            reason = "the last call of send hangs" if alert.check in hanging else "other calls of send took too long"
            raise TimeoutError(f"{reason}; it comes in a later tick.")
        hanging.add(alert.check)

        def call() -> bool:
            try:
                send(alert, context)
            finally:
                hanging.discard(alert.check)
            return True

        if not answer_within(left, call):
            raise TimeoutError(f"send has not returned after {left:.0f} seconds. Give its request a time limit.")

    def deliver(
        context: dg.SensorEvaluationContext, check: str, before: Case | None, deadline: float
    ) -> Iterator[Case]:
        """The case after each step that is done for good: a step ends when its alert was sent."""
        case = before or Case()
        for evaluation in _unread(context.instance, keys[check], before):
            if isinstance(evaluation, int):
                case = case.waiting_for(evaluation)
                continue
            case, alert = case.after(evaluation, check, cooldown, send_benign=send_benign)
            if alert and (tell_recovery or alert.event != "recovered"):
                sent(alert, context, deadline)
            yield case
        if remind_after:
            after, alert = case.reminder(check, datetime.now(UTC), remind_after)
            if alert and not acknowledged_by(context.instance, keys[check], case.incident):
                sent(alert, context, deadline)
            yield after

    @dg.sensor(
        name=name,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        **{
            "description": f"Tells people when {', '.join(checks)} fail.",
            "asset_selection": list(dict.fromkeys(key.asset_key for key in keys.values())),
            **known_options(sensor_options, dg.sensor),
        },
    )
    def alerts(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        deadline = monotonic() + _TICK
        try:
            stored = json.loads(context.cursor)["checks"] if context.cursor else {}
            cases = {check: Case(**case) for check, case in stored.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            context.log.error(
                f"The cursor cannot be read, so alerts of checks that fail are sent again: {error_line(error)}"
            )
            cases = {}
        failures = []
        for check in checks:
            try:
                for case in deliver(context, check, cases.get(check), deadline):
                    cases[check] = case
            except Exception as error:  # noqa: BLE001 - other checks go on, and this alert comes in the next tick
                failures.append(f"{check}: {type(error).__name__}: {error}")
                context.log.error(f"An alert of {failures[-1]}")
        cursor = json.dumps({"form": _FORM, "checks": {check: case._asdict() for check, case in cases.items()}})
        return dg.SensorResult(cursor=cursor, skip_reason="; ".join(failures) or "All alerts are sent.")

    return alerts


def _unread(instance: dg.DagsterInstance, key: dg.AssetCheckKey, case: Case | None) -> list[Evaluation | int]:
    """The evaluations since the last tick, oldest first, and the ids of those that runs are still at.

    Without a case, before the first tick, it is the latest one.
    """
    history = instance.event_log_storage.get_asset_check_execution_history
    latest = instance.get_latest_asset_check_evaluation_record(key)  # by an index; a history sorts all of them
    if latest is None or (case and latest.id <= case.last and not case.pending):
        return []
    records = history(key, limit=_FEW) if case else [latest]
    case = case or Case()
    if len(records) == _FEW and records[-1].id > case.last:
        records = history(key, limit=_MOST)
    oldest = datetime.now(UTC) - _RUNS_END
    unread: list[Evaluation | int] = []
    for record in sorted(records, key=lambda record: record.id):
        if record.id <= case.last and record.id not in case.pending:
            continue
        if isinstance(record.evaluation, dg.AssetCheckEvaluation):
            unread.append(Evaluation.of(record))
        elif datetime.fromtimestamp(record.create_timestamp, UTC) > oldest:
            unread.append(record.id)
    return unread
