"""The checks of a watched deployment, for the UI and for runs: its sensor's last verdict, and if it still looks."""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from dagster_mlops.core.argument_types import refuse_mistyped
from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.monitoring import facts
from dagster_mlops.monitoring.live import evaluations, sight


def divergence_checks(
    *,
    deployment: AssetLike,
    check: str = evaluations.DIVERGENCE,
    late_after: timedelta = timedelta(hours=1),
    **check_options: Any,
) -> dg.AssetChecksDefinition:
    """The checks ``divergence`` and ``blind`` of a deployment, which :func:`divergence_sensor` evaluates.

        asset_checks = [divergence_checks(deployment=deployment)]

    A run of them reads no predictions: ``divergence`` repeats the last verdict, and ``blind`` fails if none is younger
    than `late_after`, as when the sensor was switched off or Dagster's daemon is down. Schedule such a run where
    another daemon can start it, or let a rule of your Prometheus look.

    Args:
        deployment: A ``deployment_asset``.
        late_after: Age of the last verdict from which the sensor counts as dead.
        check_options: Anything else that :func:`dagster.asset_check` takes.
    """
    refuse_mistyped(divergence_checks, locals())
    key = asset_key(deployment)
    refuse_useless(
        f"divergence_checks of {key.to_user_string()}",
        {f"late_after={late_after} is not more than 0": late_after <= timedelta(0)},
    )

    def repeated(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        evaluation = last_evaluation(context.instance, dg.AssetCheckKey(key, check))
        if evaluation is None:
            text = (
                "Not judged: no window has ended yet. Switch on the sensor of divergence_sensor, and Dagster's daemon."
            )
            return dg.AssetCheckResult(
                passed=True, severity=dg.AssetCheckSeverity.WARN, description=text, metadata={facts.STATE: "undecided"}
            )
        return dg.AssetCheckResult(
            passed=evaluation.passed,
            severity=evaluation.severity,
            description=evaluation.description,
            metadata={**evaluation.metadata, facts.REPEATED: True},
        )

    def blind(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        verdict = last_evaluation(context.instance, dg.AssetCheckKey(key, check))
        seen = last_evaluation(context.instance, dg.AssetCheckKey(key, sight.CHECK))
        problem = "" if seen is None or seen.passed else (seen.description or "the sensor is blind.")
        end = _window_end(verdict)
        age = datetime.now(UTC) - end if end else None
        if age is None or age > late_after:
            since = f"since {end:%Y-%m-%d %H:%M} UTC" if end else "yet"
            problem = (
                problem or f"no window has been judged {since}: is the sensor switched on, and the daemon running?"
            )
        return dg.AssetCheckResult(
            passed=not problem,
            severity=dg.AssetCheckSeverity.ERROR,
            description=problem or "Windows are judged in time.",
            metadata={
                facts.STATE: "detected" if problem else "ok",
                **({facts.LAG: age.total_seconds()} if age else {}),
            },
        )

    return asset_checks(
        asset=key,
        tool=facts.TOOL,
        judges={
            check: ("What it predicts is as in its history, window by window.", repeated),
            sight.CHECK: ("The predictions are read, and windows are judged in time.", blind),
        },
        blocking=False,
        options=check_options,
    )


def last_evaluation(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> dg.AssetCheckEvaluation | None:
    """The last evaluation of a check that has one; a run may be at it right now."""
    for record in instance.event_log_storage.get_asset_check_execution_history(check, limit=20):
        if isinstance(record.evaluation, dg.AssetCheckEvaluation):
            return record.evaluation
    return None


def _window_end(evaluation: dg.AssetCheckEvaluation | None) -> datetime | None:
    value = evaluation.metadata.get(facts.WINDOW_END) if evaluation else None
    return datetime.fromisoformat(str(value.value)) if value else None
