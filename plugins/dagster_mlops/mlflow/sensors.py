"""A sensor that closes MLflow runs whose Dagster run has ended."""

import time
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from dagster_mlops.core.environment import environment
from dagster_mlops.core.options import known_options
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.server.client import request_limits

_ENDED = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.SUCCESS]
_BUDGET_S = 40.0  # a tick is cut off after 60 s


def close_orphan_runs_sensor(
    *,
    name: str = "close_orphan_mlflow_runs",
    minimum_interval_seconds: int = 60,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
    **sensor_options: Any,
) -> dg.SensorDefinition:
    """Closes MLflow runs that are still RUNNING after the Dagster run that opened them failed, or was cancelled.

        dg.Definitions(sensors=[close_orphan_runs_sensor()], resources={"mlflow": MlflowResource(...)}, ...)

    A training asset closes its own run however it ends, except when its process is killed or its machine dies. The next
    training of the same asset closes such a run; the sensor closes it when there is no next one. MLflow is only queried
    (and imported) after a Dagster run that trained something has ended. Dagster itself notices a dead run worker with
    ``run_monitoring: {enabled: true}`` in ``dagster.yaml``. Everything else that :func:`dagster.sensor` takes is
    passed on.
    """

    @dg.sensor(
        name=name,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        **{
            "description": "Closes MLflow runs that no process writes to any more.",
            **known_options(sensor_options, dg.sensor),
        },
    )
    def close_orphan_runs(context: dg.SensorEvaluationContext, mlflow: MlflowResource) -> dg.SkipReason:
        # For ticks, not for code locations.
        from dagster_mlops.mlflow.runs import lookup as runs
        from dagster_mlops.mlflow.runs.active import close_parents_of

        ended = context.instance.get_run_records(
            dg.RunsFilter(
                statuses=_ENDED,
                tags={runs.TRAINING_TAG: "true"},
                # Without a cursor, all runs that have ever ended are checked once.
                updated_after=datetime.fromtimestamp(float(context.cursor or 0.0), tz=UTC),
            ),
            order_by="update_timestamp",
            ascending=True,
        )
        if not ended:
            return dg.SkipReason("No Dagster run that trains has ended since the last tick.")
        deadline = time.monotonic() + _BUDGET_S
        closed: list[str] = []
        with mlflow.activate() as client, environment(**request_limits(timeout=10, retries=2)):
            for run_id in runs.close_ended(client, context.instance):
                closed.append(run_id)
                if time.monotonic() > deadline:
                    return dg.SkipReason(f"Closed {len(closed)} MLflow runs; the next tick closes more.")
            for record in ended:
                closed += close_parents_of(client, record.dagster_run)
                context.update_cursor(str(record.update_timestamp.timestamp()))
                if time.monotonic() > deadline:
                    break
        return dg.SkipReason(f"Closed MLflow runs: {', '.join(closed) or 'none'}.")

    return close_orphan_runs
