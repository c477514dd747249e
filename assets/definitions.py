"""Everything together: assets, checks, jobs, schedules, sensors, resources and the executor."""

import dagster as dg

from assets.data import FIRST_IN_PRODUCTION, MONTHS, airports, flight_checks, flights, planes, weather
from assets.features import (
    VIEWS,
    carrier_punctuality,
    feature_views,
    origin_congestion,
    origin_weather,
    plane_attributes,
    route_punctuality,
)
from assets.monitoring import champion_reference, monitoring_checks
from assets.promotion import champion, champion_reproduction
from assets.serving import bento, deployment, predictions, serving_checks, traffic
from assets.training import (
    arrival_delay_evaluation,
    arrival_delay_model,
    golden_set,
    model_checks,
    reference,
    training_checks,
    training_entities,
    training_set,
    validation_rows,
)
from dagster_mlops.bentoml import deployment_health_sensor
from dagster_mlops.core import validate_asset_names
from dagster_mlops.dvc import dvc_io_manager
from dagster_mlops.k8s import mlops_executor
from dagster_mlops.mlflow import close_orphan_runs_sensor
from resources import deployment as deployed_resources

# The year is over, so the feed hands out one month after the other, up to this one.
LAST_MONTH_IN_FEED = FIRST_IN_PRODUCTION

static = dg.AssetSelection.assets(planes, airports, plane_attributes, "plane_attributes")
monthly = dg.AssetSelection.assets(
    flights, weather, carrier_punctuality, route_punctuality, origin_congestion, origin_weather, *VIEWS
)
training = dg.AssetSelection.assets(
    training_entities,
    training_set,
    validation_rows,
    arrival_delay_model,
    arrival_delay_evaluation,
    golden_set,
    reference,
)
release = dg.AssetSelection.assets(bento, deployment)

jobs = [
    dg.define_asset_job("static", static, description="Tables without a date."),
    dg.define_asset_job("ingest", monthly, description="A month of flights and weather, and its features."),
    dg.define_asset_job("train", training, description="Training set, model, evaluation, golden set, reference."),
    dg.define_asset_job(
        "promote",
        dg.AssetSelection.assets(champion, champion_reference),
        description="Move the champion if beaten, and monitor by the reference of the version that holds it.",
    ),
    dg.define_asset_job("release", release, description="Build the champion's bento and deploy it."),
    dg.define_asset_job(
        "replay", dg.AssetSelection.assets(traffic, predictions), description="A month of traffic, and its checks."
    ),
]


@dg.sensor(
    job_name="ingest",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ingests the next month of the feed once the month before is complete.",
)
def next_month(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Ingest the next month of the feed as soon as the one before is complete."""
    done = context.instance.get_materialized_partitions(dg.AssetKey("origin_congestion"))
    for month in MONTHS.get_partition_keys():
        if month > LAST_MONTH_IN_FEED:
            return dg.SkipReason(f"The feed ends with {LAST_MONTH_IN_FEED}.")
        if month not in done:
            return dg.RunRequest(partition_key=month, run_key=f"feed:{month}")
    return dg.SkipReason("Every month is in.")


@dg.sensor(
    job_name="static",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Loads the tables without a date, once.",
)
def static_tables(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Load the tables without a date once."""
    if context.instance.get_latest_materialization_event(dg.AssetKey("plane_attributes")):
        return dg.SkipReason("The tables are in.")
    return dg.RunRequest(run_key="static")


retrain_weekly = dg.ScheduleDefinition(
    name="retrain_weekly",
    target=training,
    cron_schedule="0 5 * * 1",
    execution_timezone="America/New_York",
    description="Retrain even if no dataset changed, so that a broken training path is found early. Off by default.",
)

reproduce_weekly = dg.ScheduleDefinition(
    name="reproduce_weekly",
    target=dg.AssetSelection.assets(champion_reproduction),
    cron_schedule="0 4 * * 0",
    execution_timezone="America/New_York",
    description="Train the champion once more, as it was trained then, to know that it still can be. Off by default.",
)

automation = dg.AutomationConditionSensorDefinition(
    "automation", target=dg.AssetSelection.all(), default_status=dg.DefaultSensorStatus.RUNNING
)

defs = validate_asset_names(
    dg.Definitions(
        assets=[
            flights,
            weather,
            planes,
            airports,
            carrier_punctuality,
            route_punctuality,
            origin_congestion,
            origin_weather,
            plane_attributes,
            *feature_views,
            training_entities,
            training_set,
            validation_rows,
            arrival_delay_model,
            arrival_delay_evaluation,
            golden_set,
            reference,
            champion,
            champion_reference,
            champion_reproduction,
            bento,
            deployment,
            traffic,
            predictions,
        ],
        asset_checks=[*flight_checks, *training_checks, *model_checks, *serving_checks, *monitoring_checks],
        jobs=jobs,
        schedules=[retrain_weekly, reproduce_weekly],
        sensors=[
            next_month,
            static_tables,
            automation,
            close_orphan_runs_sensor(),
            deployment_health_sensor(deployment=deployment),
        ],
        resources={**deployed_resources(), "dvc_io_manager": dvc_io_manager},
        # Step processes are forked from one that has imported what costs most.
        executor=mlops_executor(preload_modules=["pandas", "sklearn.ensemble", "dagster", "assets.definitions"]),
    )
)
