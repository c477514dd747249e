"""A check of the live deployment: that it answers, serves the right version, predicts as it did, and how fast."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.asset_records import AnyContext, latest
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.errors import DeploymentError
from dagster_mlops.provenance import Deployment
from dagster_mlops.serving.local.processes import psutil


def deployment_health_check(
    *,
    asset: AssetLike,
    resource_key: str,
    name: str = "health",
    alias: str | None = "champion",
    tolerance: float = 1e-9,
    calls: int = 50,
    timeout: float = 10,
    blocking: bool = False,
    **check_options: Any,
) -> dg.AssetChecksDefinition:
    """A check of the deployment that `asset` (a ``deployment_asset``) made.

    It fails when the deployment does not answer through its public port, or predicts the kept golden rows differently
    from the registered model when it went live. It warns when the registry's `alias` is on another version than the
    one served. Latencies of `calls` single-row requests are metadata. None of these requests is logged as a prediction.

        checks = [deployment_health_check(asset=deployment, resource_key="bentoml")]

    Everything else that :func:`dagster.asset_check` takes is passed on.
    """
    key = asset_key(asset)

    def health(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        # For steps, not for code locations.
        from dagster_mlops.serving.golden.golden_set import Golden
        from dagster_mlops.serving.local import envoy
        from dagster_mlops.serving.local.overview import status
        from dagster_mlops.serving.local.state import load, state_file
        from dagster_mlops.serving.local.target import golden_difference
        from dagster_mlops.serving.packager import Packages

        record = live_record(context, key)
        live = next((row for row in status(record.state_dir) if row["live"]), None)
        if live is None or not live["healthy"]:
            reason = live["reason"] if live else "no deployment is live"
            return dg.AssetCheckResult(passed=False, description=f"{record.url}: {reason}", metadata={"reason": reason})
        state = load(state_file(Path(record.state_dir), live["id"]))
        golden = Golden(**json.loads((Path(record.state_dir) / "golden" / f"{state.id}.json").read_text()))
        try:
            difference = golden_difference(golden, record.url, state, tolerance=tolerance, timeout=timeout)
        except DeploymentError as error:
            return dg.AssetCheckResult(passed=False, description=str(error), metadata={"reason": "golden set"})
        milliseconds = []
        with envoy.client(record.url, Path(record.state_dir), timeout=timeout) as client:
            for call in range(calls):
                start = time.perf_counter()
                body = {state.rows_field: [golden.rows[call % len(golden.rows)]]}
                client.post(state.route, json=body, headers={"x-probe": state.probe}).raise_for_status()
                milliseconds.append((time.perf_counter() - start) * 1000)
        milliseconds.sort()
        packager = capable_resource(context, resource_key, Packages)
        registered = packager.alias_version(live["model_name"], alias) if alias else None
        current = registered in (None, live["model_version"])
        return dg.AssetCheckResult(
            passed=current,
            severity=dg.AssetCheckSeverity.WARN if not current else dg.AssetCheckSeverity.ERROR,
            description=""
            if current
            else f"serves {live['model_name']} version {live['model_version']}, but '{alias}' is version {registered}.",
            metadata={
                "deployment": live["id"],
                "model_version": live["model_version"],
                "alias_version": registered or "none",
                "golden_max_difference": difference,
                "latency_p50_ms": milliseconds[len(milliseconds) // 2],
                "latency_p99_ms": milliseconds[min(len(milliseconds) - 1, int(len(milliseconds) * 0.99))],
                "resident_mb": _resident_mb(live["pids"]),
            },
        )

    return asset_checks(
        asset=key,
        tool=resource_key,
        judges={name: ("The live deployment answers as it did, with the model that it should.", health)},
        blocking=blocking,
        required_resource_keys=[resource_key],
        options=check_options,
    )


def live_record(context: AnyContext, key: dg.AssetKey) -> Deployment:
    """The Deployment record on the asset's latest materialization.

    Raises:
        DeploymentError: there is none.
    """
    return latest(context, key, Deployment, error=DeploymentError, hint="Materialize it, then check again.")


def _resident_mb(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            memory = psutil.Process(pid).memory_full_info()
            total += getattr(memory, "pss", memory.rss)  # forks share pages, which count once
    return total / 1e6
