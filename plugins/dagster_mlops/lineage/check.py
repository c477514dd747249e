"""An asset check that runs a training again, for a schedule that proves that the champion is still reproducible."""

import tempfile
import time
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.errors import DagsterMlopsError
from dagster_mlops.lineage.event_log import EventLog
from dagster_mlops.lineage.recipe import find_recipe
from dagster_mlops.lineage.rerun import Environment, rerun
from dagster_mlops.lineage.tools import Tools


def reproduction_check(
    *,
    asset: Any,
    training: str,
    name: str = "reproducible",
    environment: Environment = "new",
    golden: str | None = None,
    tolerance: float = 1e-9,
    timeout: float = 6 * 3600.0,
    tracking_uri: str = "",
    blocking: bool = False,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetChecksDefinition:
    """A check that runs a training again, as ``dagster-mlops reproduce`` does, and passes when it comes out the same.

    It takes as long as the training: put it into a job of its own, and do not select it with the asset.

        again = reproduction_check(asset=delay_model, training="delay@champion")
        job = dg.define_asset_job("reproduce_champion", dg.AssetSelection.checks(again))
        weekly = dg.ScheduleDefinition(job=job, cron_schedule="0 4 * * 0")

    Args:
        asset: The training asset, or any asset that the result shall be shown on.
        training: An MLflow run id, ``MODEL/VERSION`` or ``MODEL@ALIAS``, asked for anew each time.
        environment: ``new`` installs the lock file of then, ``current`` takes the environment of the step.
        golden: A Parquet file of model inputs to compare predictions on; else the reference distribution that the run
            keeps, or the model's input example.
        tolerance: How far metrics and predictions may be apart, relative to their size.
        timeout: Seconds that the training may take.
        tracking_uri: Where MLflow is; else where Dagster's event log knows the model.
        blocking: Whether what depends on the asset waits for it.
        severity: Of a failure.
    """

    @dg.asset_check(
        asset=asset,
        name=name,
        blocking=blocking,
        description=f"{training}, run again on the code, data and environment of then, comes out the same.",
    )
    def reproducible(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        started = time.monotonic()
        try:
            tools = Tools()
            recipe = find_recipe(training, at=tracking_uri, tools=tools, events=EventLog(context.instance))
            with tempfile.TemporaryDirectory(prefix="dagster-mlops-rerun-") as scratch:
                verdict = rerun(
                    recipe,
                    Path(scratch),
                    environment=environment,
                    golden=Path(golden) if golden else None,
                    tolerance=tolerance,
                    timeout=timeout,
                    tools=tools,
                    tell=context.log.info,
                )
        except DagsterMlopsError as error:
            return dg.AssetCheckResult(passed=False, severity=severity, description=str(error))
        except Exception as error:  # noqa: BLE001 - a check that breaks has failed; it is never a missing result
            told = f"The check itself broke: {type(error).__name__}: {error}"
            return dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.ERROR, description=told)
        rows = [dg.TableRecord({k: str(v) for k, v in vars(f).items()}) for f in verdict.findings]
        outcome = f"not the same: {', '.join(verdict.different)}" if verdict.different else "everything is the same"
        return dg.AssetCheckResult(
            passed=verdict.reproduced,
            severity=severity,
            description=f"run {verdict.then.run_id}: {outcome}",
            metadata={
                "reproduce/run": verdict.then.run_id,
                "reproduce/findings": dg.MetadataValue.table(rows),
                "reproduce/different": len(verdict.different),
                "reproduce/seconds": round(time.monotonic() - started, 1),
            },
        )

    return reproducible
