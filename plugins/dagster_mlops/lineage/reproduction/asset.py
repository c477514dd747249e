"""An asset that runs a training again, so that a schedule can prove that the champion is still reproducible."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import dagster as dg

from dagster_mlops.core.checks import never_missing
from dagster_mlops.core.metadata import table
from dagster_mlops.core.options import merged_options
from dagster_mlops.core.resources import note_credentials
from dagster_mlops.errors import DagsterMlopsError
from dagster_mlops.provenance import mask_credentials

CHECK = "reproducible"


def reproduction_asset(
    *,
    training: str,
    name: str = "reproduction",
    environment: Literal["new", "current"] = "new",
    golden: str | None = None,
    tolerance: float = 1e-9,
    timeout: float = 6 * 3600.0,
    tracking_uri: str | dg.EnvVar = "",
    repo: str | None = None,
    branches: Sequence[str] | None = ("*",),
    variables: Sequence[str] = (),
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset whose materialization runs a training again, as ``dagster-mlops reproduce`` does.

    Its check ``reproducible`` passes if the result is the same, and otherwise lists what differs or is gone; where too
    little could be compared to tell, it fails as a warning. It takes as long as the training, so let a schedule run it
    rather than an automation condition.

        reproduction = reproduction_asset(training="delay@champion", deps=[champion])
        weekly = dg.ScheduleDefinition(target=dg.AssetSelection.assets(reproduction), cron_schedule="0 4 * * 0")

    Args:
        training: An MLflow run id, ``MODEL/VERSION`` or ``MODEL@ALIAS``, looked up each time.
        name: Name of the asset.
        environment: ``new`` installs the recorded lock file, ``current`` uses the environment of the step.
        golden: Parquet file of model inputs to compare predictions on; default: the reference distribution that the
            run keeps, or the model's input example.
        tolerance: Largest difference of metrics and predictions, relative to their size.
        timeout: Time limit of the training in seconds.
        tracking_uri: Tracking URI, or a ``dg.EnvVar`` with it; default: the one in Dagster's event log.
        repo: Checkout that has the commit; default: the working directory.
        branches: Patterns of branches, local or of a remote, one of which must have the commit. Then neither a commit
            of no branch nor uncommitted changes run, which anyone who can write a run could name, nor runs that are
            not in Dagster's event log. None takes them all, and the recorded checkout as well.
        variables: Names of environment variables that the training may see, or patterns such as ``AWS_*``. Without,
            it sees those of the machine (``PATH``, ``HOME``, ``LANG``, proxies), and no passwords or tokens.
        severity: Severity of a failed check.
        asset_options: Further options of :func:`dagster.asset`, such as ``deps`` on the promotion asset.
    """
    note_credentials("reproduction_asset", "tracking_uri", tracking_uri)
    description = f"{training}, run again on the recorded code, data and environment."
    options = merged_options(asset_options, name=name, description=description)
    prefix = options.pop("key_prefix", ())
    key = options.pop("key", None) or dg.AssetKey(options.pop("name", name)).with_prefix(prefix)
    spec = dg.AssetCheckSpec(CHECK, asset=key, description=f"{training} comes out the same when it is run again.")

    def reproduction(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        # Here, not above: a code location with this asset need not load the modules of lineage.
        from dagster_mlops.lineage.chain.sources import EventLog, Tools
        from dagster_mlops.lineage.reproduction.recipe import find_recipe
        from dagster_mlops.lineage.reproduction.rerun import rerun

        metadata: dict[str, Any] = {}

        def judge() -> dg.AssetCheckResult:
            tools, events = Tools(), EventLog(context.instance)
            address = (tracking_uri.get_value() if isinstance(tracking_uri, dg.EnvVar) else tracking_uri) or ""
            checkout = Path(repo or Path.cwd()) if repo or branches is not None else None
            try:
                recipe = find_recipe(training, at=address, repo=checkout, tools=tools, events=events)
                with tempfile.TemporaryDirectory(prefix="dagster-mlops-rerun-") as scratch:
                    verdict = rerun(
                        recipe,
                        Path(scratch),
                        environment=environment,
                        golden=Path(golden) if golden else None,
                        tolerance=tolerance,
                        timeout=timeout,
                        variables=variables,
                        branches=branches,
                        consent=branches is None,
                        tools=tools,
                        tell=context.log.info,
                    )
            except DagsterMlopsError as error:  # an ingredient of the training is gone: a verdict, not a crash
                return dg.AssetCheckResult(passed=False, severity=severity, description=mask_credentials(str(error)))
            metadata["reproduce/run"] = verdict.original.run_id
            metadata.update(table("reproduce/findings", map(vars, verdict.findings)))
            metadata["reproduce/different"] = len(verdict.different)
            metadata["reproduce/verdict"] = verdict.strength
            names = f": {', '.join(verdict.different)}" if verdict.different else f" on {verdict.evidence}"
            text = f"run {verdict.original.run_id}: {verdict.strength}{names}"
            # No one can fix, at night, that an old training had an input without a version.
            level = dg.AssetCheckSeverity.WARN if verdict.strength == "too little to tell" else severity
            return dg.AssetCheckResult(passed=verdict.reproduced, severity=level, description=text)

        started = time.monotonic()
        result = never_missing(judge, tool="reproduce", log=context.log.error)._replace(check_name=CHECK)
        metadata["reproduce/reproduced"] = int(result.passed)  # a number, which the UI plots over time
        metadata["reproduce/seconds"] = round(time.monotonic() - started, 1)
        return dg.MaterializeResult(metadata=metadata, check_results=[result])

    specs = [spec, *options.pop("check_specs", ())]
    return dg.asset(key=key, **options, check_specs=specs)(reproduction)
