"""Is production still what the model was validated for: quality, drift and performance of the logged predictions."""

from typing import Any

from assets.data import flights, weather
from assets.features import FRESH
from assets.promotion import champion
from assets.serving import predictions
from assets.training import MODEL
from dagster_mlops.dvc import dataset_asset
from dagster_mlops.evidently import data_quality_check, drift_check, performance_check
from dagster_mlops.mlflow import MlflowResource, load_reference

WATCHED = [
    "temp", "humid", "wind_speed", "precip", "visib", "origin_waiting", "origin_delay_3h", "carrier_delay_24h",
    "route_delay_14d", "departure_minute", "distance", "carrier", "probability",
]  # fmt: skip


@dataset_asset(
    path="monitoring/reference.parquet",
    deps=[champion],
    group_name="monitoring",
    code_version="1",
    automation_condition=FRESH,
)
def champion_reference(mlflow: MlflowResource) -> Any:
    """The reference distribution of the version in production, also after a rollback to an older one."""
    return load_reference(f"{MODEL}@champion", mlflow=mlflow)


monitoring_checks = [
    data_quality_check(
        asset=flights,
        min_rows=20_000,
        max_missing_share={"time_hour": 0.0, "carrier": 0.0, "dep_delay": 0.08, "arr_delay": 0.08},
        ranges={"distance": (10, 6000), "dep_delay": (-120, 2000)},
        no_duplicates_of=["flight_id"],
    ),
    data_quality_check(
        asset=weather,
        min_rows=1_500,
        max_missing_share={"temp": 0.02, "wind_speed": 0.02},
        ranges={"temp": (-30, 120), "humid": (0, 100), "visib": (0, 20)},
        no_duplicates_of=["origin", "time_hour"],
        severity="WARN",
    ),
    data_quality_check(
        asset=predictions,
        min_rows=10_000,
        max_missing_share={"probability": 0.0, "carrier": 0.0, "temp": 0.05},
        ranges={"probability": (0, 1)},
        no_duplicates_of=["flight_id"],
    ),
    drift_check(asset=predictions, reference=champion_reference, columns=WATCHED, drift_share=0.3),
    performance_check(
        asset=predictions, reference=champion_reference, target="late", prediction="probability",
        bounds={"roc_auc": 0.7}, max_drop=0.1,
    ),
]  # fmt: skip
