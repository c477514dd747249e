"""The champion as a bento, a deployment that proves itself, and a month of flights as its traffic."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dagster as dg

from assets.data import FIRST_IN_PRODUCTION, NEW_YORK, DataFrame
from assets.features import FRESH, FRESH_IN_ANY_MONTH, VIEWS
from assets.promotion import champion
from assets.training import departures, golden_set, model_inputs
from dagster_mlops.bentoml import PredictionLog, bento_asset, deployment_asset, deployment_health_check
from dagster_mlops.core import upstream_records
from dagster_mlops.dvc import dataset_asset
from dagster_mlops.feast import FeastResource
from dagster_mlops.provenance import Deployment
from resources import STATE

PRODUCTION = dg.MonthlyPartitionsDefinition(start_date=FIRST_IN_PRODUCTION, end_date="2014-01-01", timezone=NEW_YORK)

PORT = int(os.environ.get("DAGSTER_MLOPS_PORT", "8300"))  # 3000 is the Dagster UI's

bento = bento_asset(
    promoted=champion.key,
    packages=["mlflow", "scikit-learn", "pandas"],
    group_name="serving",
    automation_condition=FRESH,
)

deployment = deployment_asset(
    bento=bento.key,
    golden_set=golden_set.key,
    state_dir=str(STATE / "serving"),
    port=PORT,
    group_name="serving",
    automation_condition=FRESH & dg.AutomationCondition.all_deps_blocking_checks_passed(),
)


serving_checks = [deployment_health_check(asset=deployment)]

# A month is replayed once: when all it needs is there, and not again for each new deployment. Dagster's `on_missing`
# leaves out partitions that existed before it was first evaluated, which a year that is over always did.
ONCE = (
    dg.AutomationCondition.missing()
    & ~dg.AutomationCondition.any_deps_missing()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
    & ~dg.AutomationCondition.execution_failed()
)


@dg.asset(
    partitions_def=PRODUCTION,
    deps=[deployment, *(dg.AssetKey(view) for view in VIEWS), dg.AssetKey("plane_attributes")],
    group_name="serving",
    kinds={"http"},
    code_version="1",
    automation_condition=ONCE,
)
def traffic(
    context: dg.AssetExecutionContext, flights: DataFrame, airports: DataFrame, feast: FeastResource
) -> dg.MaterializeResult:
    """Ask the deployment about each flight of a month, in the order of departure, over HTTP.

    The features are those the online store held at each departure: the same point-in-time values, read from history
    because a year that is over cannot be replayed in real time.
    """
    [live] = [record for record in upstream_records(context) if isinstance(record, Deployment)]
    import urllib.request

    asked = departures(flights, airports).drop(columns="late").sort_values("event_timestamp", kind="stable")
    rows = feast.historical_features(asked, "arrival_delay")
    inputs = model_inputs(rows).assign(flight_id=rows["flight_id"])
    ids = [f"{context.partition_key[:7]}-flight-{flight}" for flight in rows["flight_id"]]

    # One request per hour of departures, as an airport's system would send them.
    hours = rows["event_timestamp"].dt.floor("h")
    batches = [(part.index, json.loads(part.to_json(orient="records"))) for _, part in inputs.groupby(hours.to_numpy())]

    def ask(batch: tuple[Any, list[dict[str, Any]]]) -> float:
        index, records = batch
        body = json.dumps({"rows": records, "ids": [ids[i] for i in index]}).encode()
        request = urllib.request.Request(f"{live.url}/predict", body, {"content-type": "application/json"})
        start = time.perf_counter()
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert len(json.load(answer)["predictions"]) == len(records)
        return time.perf_counter() - start

    context.log.info(f"Sending {len(rows)} flights in {len(batches)} requests to {live.url}.")
    with ThreadPoolExecutor(4) as pool:
        seconds = sorted(pool.map(ask, batches))
    return dg.MaterializeResult(
        metadata={
            "flights": len(rows),
            "requests": len(batches),
            "latency_p50_ms": 1000 * seconds[len(seconds) // 2],
            "latency_p99_ms": 1000 * seconds[int(len(seconds) * 0.99)],
            "model_version": live.model_version,
        }
    )


@dataset_asset(
    path="production/predictions/{partition}.parquet",
    partitions_def=PRODUCTION,
    deps=[traffic, deployment],
    group_name="monitoring",
    code_version="1",
    automation_condition=FRESH_IN_ANY_MONTH,
)
def predictions(context: dg.AssetExecutionContext, flights: DataFrame, airports: DataFrame) -> dg.MaterializeResult:
    """The month's predictions as the deployment logged them, with the labels that have arrived since."""
    [live] = {record.prediction_log for record in upstream_records(context) if isinstance(record, Deployment)}
    logged: DataFrame = PredictionLog.read(live)
    logged = logged[logged["request_id"].str.startswith(f"{context.partition_key[:7]}-flight-")]
    logged = logged.drop_duplicates("request_id", keep="last").rename(columns={"output": "probability"})
    logged["flight_id"] = logged["request_id"].str.rsplit("-", n=1).str[1].astype(int)
    labels = departures(flights, airports)[["flight_id", "event_timestamp", "late"]]
    frame = logged.merge(labels, on="flight_id", how="left").sort_values("flight_id", ignore_index=True)
    example = frame.loc[frame["probability"].idxmax(), "request_id"]
    return dg.MaterializeResult(value=frame, metadata={"example_request_id": str(example)})
