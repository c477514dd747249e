"""The watch of the watch: whether it sees what is served, as an asset check of its own."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.monitoring import facts
from dagster_mlops.monitoring.live.failed_requests import silent_failures
from dagster_mlops.monitoring.live.watch import Step
from dagster_mlops.serving.runtime import PredictionLog

CHECK = "blind"
_REPEATED = timedelta(hours=1)


def reasons(step: Step, time: datetime, silence: timedelta | None, log: Path) -> list[str]:
    """The reasons why the verdicts do not cover what is served; none where they do."""
    quiet_since = step.progress.last_row or step.progress.start
    texts = []
    if silence and time - quiet_since > silence:
        texts.append(f"no prediction was logged since {quiet_since:%Y-%m-%d %H:%M} UTC")
    if failures := silent_failures(log, quiet_since, time):
        texts.append(failures)
    if step.progress.ahead and time - step.progress.ahead < _REPEATED:
        texts.append("rows with times to come were logged, which no window counts: set the clocks of these machines")
    if not step.caught_up:
        texts.append("the log grows faster than it is read, so that windows are judged late")
    recent = [loss for loss in PredictionLog.losses(log) if str(loss["until"]) > (time - _REPEATED).isoformat()]
    if recent:
        texts.append(f"{sum(int(loss['rows']) for loss in recent):,} predictions were answered and not logged")
    return texts


def _words(reason: str) -> str:
    return re.sub(r"\d+", "", reason.replace(",", ""))


def how_far(step: Step, time: datetime) -> dict[str, Any]:
    """Metadata on how far the watch has come."""
    closed, last_row = step.progress.closed, step.progress.last_row
    return {
        facts.LATE_ROWS: step.progress.late,
        "monitoring/open_windows": len(step.progress.windows),
        **({facts.LAG: (time - closed).total_seconds()} if closed else {}),
        **({"monitoring/last_row": last_row.isoformat()} if last_row else {}),
    }


def evaluations(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    target: Any,
    time: datetime,
    texts: Sequence[str],
    metadata: Mapping[str, Any],
) -> list[dg.AssetCheckEvaluation]:
    """The evaluation that says so, unless the last one says the same and is less than an hour old."""
    reason = "; ".join(text.removesuffix(".") for text in texts)
    record = instance.get_latest_asset_check_evaluation_record(dg.AssetCheckKey(key, CHECK))
    if record and isinstance(record.evaluation, dg.AssetCheckEvaluation):
        before = record.evaluation.metadata.get(facts.REASON)
        is_recent = time.timestamp() - record.create_timestamp < _REPEATED.total_seconds()
        # Another number is not news: else an outage would be reported in each tick.
        is_same = record.evaluation.passed == (not texts) and _words(str(before.value) if before else "") == _words(
            reason
        )
        if is_recent and is_same:
            return []
    event = dg.AssetCheckEvaluation(
        asset_key=key,
        check_name=CHECK,
        passed=not texts,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={facts.STATE: "detected" if texts else "ok", **({facts.REASON: reason} if texts else {}), **metadata},
        description=f"Blind: {reason}." if texts else "The log is read, and windows are judged in time.",
        target_materialization_data=target,
        blocking=False,
    )
    return [event]
