"""The lifecycle of the reference code location as one plain script: the same steps, the tools' own APIs, no Dagster.

``python -m tests.benchmarks.raw_lifecycle`` works in the fresh folder that ``DAGSTER_MLOPS_STATE`` names and writes one
line of JSON. It is what one would write to get the work done once: no code versions, staleness, retries, gates or
lineage; tables stay in memory instead of being read back; nothing survives a kill.
"""

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd

from assets.data import NEW_YORK, DataFrame, source_table, with_instants
from assets.features import VIEWS, carrier_table, congestion_table, plane_table, route_table, weather_table
from assets.training import departures, fit_and_log, model_inputs
from resources import STATE
from tests.benchmarks.raw_evaluation import evaluate
from tests.benchmarks.raw_tools import Data, Features, Reports, ask, clock, served

MONTHS = [f"2013-{month:02}-01" for month in range(1, 8)]
TRAINING_MONTHS, REPLAYED = MONTHS[:6], MONTHS[6]
MODEL = "arrival_delay"
TRACKING_URI = f"sqlite:///{STATE}/mlflow/mlflow.db"


def window(month: str) -> tuple[datetime, datetime]:
    """A month in New York, as the first and last moment of its events, in UTC."""
    start: Any = pd.Timestamp(month, tz=NEW_YORK)
    end = start + pd.offsets.MonthBegin(1) - pd.Timedelta("1us")
    return start.tz_convert("UTC").to_pydatetime(), end.tz_convert("UTC").to_pydatetime()


def month_of(table: str, month: str) -> DataFrame:
    frame = source_table(table)
    return frame[frame["month"] == int(month[5:7])].reset_index(drop=True)


def static(data: Data) -> Features:
    planes = source_table("planes")
    data.store(planes, "raw/planes.parquet")
    data.store(source_table("airports"), "raw/airports.parquet")
    data.store(plane_table(planes), "source/plane_attributes/planes.parquet")
    features = Features()
    features.materialize("plane_attributes", datetime(2012, 12, 1, tzinfo=UTC), window(MONTHS[0])[0])
    return features


def ingest(data: Data, features: Features, reports: Reports, airports: DataFrame) -> dict[str, DataFrame]:
    flights: dict[str, DataFrame] = {}
    for month in MONTHS:
        flights[month], weather = month_of("flights", month), month_of("weather", month)
        data.store(flights[month], f"raw/flights/{month}.parquet")
        data.store(weather, f"raw/weather/{month}.parquet")
        reports.quality(flights[month], f"flights-{month}")
        reports.quality(weather, f"weather-{month}")
        with clock.part("tables"):
            flown = with_instants(pd.concat(list(flights.values())[-2:], ignore_index=True), airports)
            tables = {
                "origin_weather": weather_table(weather),
                "carrier_punctuality": carrier_table(flown, month),
                "route_punctuality": route_table(flown, month),
                "origin_congestion": congestion_table(flown, month),
            }
        for view, table in tables.items():
            data.store(table, f"source/{view}/{month}.parquet")
            features.materialize(view, *window(month))
    return flights


def train(
    data: Data, features: Features, flights: dict[str, DataFrame], airports: DataFrame
) -> tuple[str, DataFrame, DataFrame, int]:
    """The version registered, the golden set, the reference, and how many online features differ from offline ones."""
    entities = departures(pd.concat([flights[m] for m in TRAINING_MONTHS], ignore_index=True), airports)
    data.store(entities, "training/entities.parquet")
    training_set = features.historical(entities)
    data.store(training_set, "training/training_set.parquet")
    assert len(training_set) == len(entities) == training_set["flight_id"].nunique()
    different = sum(features.online_differs(view, window(REPLAYED)[1]) for view in (*VIEWS, "plane_attributes"))

    with clock.part("mlflow"):
        import mlflow

        (STATE / "mlflow").mkdir()
        mlflow.set_tracking_uri(TRACKING_URI)
        mlflow.create_experiment(MODEL, artifact_location=str(STATE / "mlflow" / "artifacts"))
        mlflow.set_experiment(MODEL)
        with mlflow.start_run() as run:
            fit_and_log(training_set)
        outputs: Any = mlflow.get_run(run.info.run_id).outputs
        [logged] = outputs.model_outputs
        version = mlflow.register_model(f"models:/{logged.model_id}", MODEL).version
        model = mlflow.pyfunc.load_model(f"models:/{MODEL}/{version}")
    evaluate(model, training_set, run.info.run_id)

    golden = model_inputs(training_set.sample(256, random_state=7)).reset_index(drop=True)
    data.store(golden, "training/golden_set.parquet")
    rows = training_set.dropna(subset=["late"]).sample(30_000, random_state=7).sort_index()
    inputs = model_inputs(rows)
    probability = model.predict(inputs)[:, 1]
    reference = inputs.assign(probability=probability, late=rows["late"]).reset_index(drop=True)
    data.store(reference, "training/reference.parquet")
    return str(version), golden, reference, different


def promote(version: str) -> float:
    """Move the champion; its AUC."""
    import mlflow

    with clock.part("mlflow"):
        client = mlflow.MlflowClient()
        run = client.get_run(str(client.get_model_version(MODEL, version).run_id))
        assert run.data.metrics["auc"] > 0.7
        client.set_registered_model_alias(MODEL, "champion", version)
        return run.data.metrics["auc"]


def release(golden: DataFrame, log: Path, servers: ExitStack) -> tuple[str, float]:
    """The address that serves the champion, and how far its golden predictions are from the registry model's."""
    with clock.part("bentoml"):
        import bentoml
        import mlflow

        bentoml.mlflow.import_model("raw_arrival_delay", model_uri=f"models:/{MODEL}@champion")
        bento = bentoml.bentos.build(
            "raw_service:RawArrivalDelay",
            build_ctx=str(Path(__file__).parent),
            include=["raw_service.py"],
            models=["raw_arrival_delay:latest"],
            python={"packages": ["mlflow", "scikit-learn", "pandas"], "lock_packages": False},
        )
        url = servers.enter_context(served(str(bento.tag), log))
        rows: list[dict[str, Any]] = golden.astype(object).where(golden.notna(), None).to_dict("records")
        answered = ask(url, rows, [f"golden-{i}" for i in range(len(rows))])
        expected = mlflow.pyfunc.load_model(f"models:/{MODEL}@champion").predict(golden)[:, 1]
        return url, max(abs(a - b) for a, b in zip(expected.tolist(), answered, strict=True))


def replay(
    data: Data,
    features: Features,
    reports: Reports,
    flights: DataFrame,
    airports: DataFrame,
    reference: DataFrame,
    url: str,
    log: Path,
) -> dict[str, float]:
    entities = departures(flights, airports)
    rows = features.historical(entities.drop(columns="late").sort_values("event_timestamp", kind="stable"))
    inputs = model_inputs(rows).assign(flight_id=rows["flight_id"])
    ids = [f"{REPLAYED[:7]}-flight-{flight}" for flight in rows["flight_id"]]
    with clock.part("http"):
        hours = rows["event_timestamp"].dt.floor("h")
        parts: DataFrame = inputs.groupby(hours.to_numpy())
        batches = [(json.loads(part.to_json(orient="records")), [ids[i] for i in part.index]) for _, part in parts]
        with ThreadPoolExecutor(4) as pool:
            answered = sum(pool.map(lambda batch: len(ask(url, *batch)), batches))
        assert answered == len(rows)
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    frame: DataFrame = pd.DataFrame(
        [
            {"request_id": row["request_id"], **row["inputs"], "probability": row["output"]}
            for row in logged
            if row["request_id"].startswith(f"{REPLAYED[:7]}-flight-")
        ]
    )
    frame = frame.merge(entities[["flight_id", "event_timestamp", "late"]], on="flight_id", how="left")
    frame = frame.sort_values("flight_id", ignore_index=True)
    data.store(frame, f"production/predictions/{REPLAYED}.parquet")
    reports.quality(frame, "predictions")
    return {
        "predictions": len(frame),
        "mean_probability": float(frame["probability"].mean()),
        "drift_share": reports.drift(frame, reference),
        "production_auc": reports.performance(frame, "production"),
        "reference_auc": reports.performance(reference, "reference"),
    }


def main() -> None:
    os.environ["BENTOML_HOME"] = str(STATE / "bentoml")
    began, reports, log = perf_counter(), Reports(), STATE / "predictions.jsonl"
    with ExitStack() as servers:
        with clock.stage("static"):
            data = Data(STATE / "data", STATE / "dvc-remote")
            airports, features = source_table("airports"), static(data)
        with clock.stage("ingest"):
            flights = ingest(data, features, reports, airports)
        with clock.stage("train"):
            version, golden, reference, different = train(data, features, flights, airports)
        with clock.stage("promote"):
            auc = promote(version)
        with clock.stage("release"):
            url, difference = release(golden, log, servers)
        with clock.stage("replay"):
            found = replay(data, features, reports, flights[REPLAYED], airports, reference, url, log)
        results = {"auc": auc, "online_differs": different, "golden_difference": difference, **found}
        print(json.dumps({"seconds": perf_counter() - began, "stages": clock.stages, "results": results}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends, too
    main()
