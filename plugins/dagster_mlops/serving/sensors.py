"""A sensor that brings back a deployment that died."""

import json
import time
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.options import known_options
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving.checks import live_record


def deployment_health_sensor(
    *,
    deployment: AssetLike,
    name: str | None = None,
    repair_seconds: float = 120,
    retry_seconds: float = 600,
    minimum_interval_seconds: int = 30,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
    **sensor_options: Any,
) -> dg.SensorDefinition:
    """A sensor that repairs a live ``deployment_asset``, and re-materializes one that stays down.

    Servers and Envoy are started again by their supervisors. Each evaluation starts supervisors that are gone, such as
    after a reboot, and undoes changes of Envoy's files; see :func:`dagster_mlops.serving.repair`. A deployment that was
    never made, was stopped on purpose, or is being replaced right now is left alone. The sensor must run on the machine
    that serves.

        sensors = [deployment_health_sensor(deployment=deployment)]

    Args:
        repair_seconds: Seconds that a deployment may be down before a run is requested.
        retry_seconds: Seconds until another run is requested while it is still down.
        sensor_options: Whatever else :func:`dagster.sensor` takes, such as the ``job`` to run instead of the deployment
            asset alone.
    """
    key = asset_key(deployment)
    target = {} if {"job", "jobs", "job_name", "target"} & set(sensor_options) else {"asset_selection": [key]}

    @dg.sensor(
        name=name or f"{'_'.join(key.path)}_health",
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        **{
            "description": f"Repairs {key.to_user_string()}, and redeploys it when it stays down.",
            **target,
            **known_options(sensor_options, dg.sensor),
        },
    )
    def health(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        # For evaluations, not for code locations.
        from dagster_mlops.serving.local.overview import status
        from dagster_mlops.serving.local.reconcile import repair
        from dagster_mlops.serving.local.state import busy

        try:
            record = live_record(context, key)
        except DeploymentError:
            return dg.SkipReason(f"{key.to_user_string()} was never deployed.")
        for action in repair(record.state_dir):
            context.log.info(action)
        live = next((row for row in status(record.state_dir) if row["live"]), None)
        if live is None:
            return dg.SensorResult(skip_reason="No deployment is live; it was stopped on purpose.", cursor="")
        if live["healthy"]:
            return dg.SensorResult(skip_reason=f"{live['id']} answers.", cursor="")
        if busy(Path(record.state_dir)):
            return dg.SkipReason(f"{live['id']} is down ({live['reason']}), and is being replaced.")
        outage = json.loads(context.cursor) if context.cursor else {}
        # The first tick that sees it down names the death, so that a later one of the same deployment is another event.
        since = outage["since"] if outage.get("id") == live["id"] else time.time()
        cursor, down = json.dumps({"id": live["id"], "since": since}), time.time() - since
        context.log.info(f"{live['id']} is down: {live['reason']}.")
        if down < repair_seconds:
            return dg.SensorResult(skip_reason=f"{live['id']} is being started by its supervisor.", cursor=cursor)
        attempt = int((down - repair_seconds) / retry_seconds)
        request = dg.RunRequest(
            run_key=f"{live['id']}:{since:.3f}:{attempt}", tags={"dagster_mlops/redeploys": live["id"]}
        )
        return dg.SensorResult(run_requests=[request], cursor=cursor)

    return health
