"""From flights to a tracked model: entities, training set, gradient boosting, evaluation, golden and reference sets."""

from typing import Any, TypeAlias

import dagster as dg

from assets.data import NEW_YORK, TRAINING_MONTHS, DataFrame, with_instants
from assets.features import FRESH, LATE_MINUTES, VIEWS
from dagster_mlops.dvc import PATH_KEY, dataset_asset
from dagster_mlops.feast import online_offline_parity_check, training_set_asset, training_set_checks
from dagster_mlops.mlflow import evaluation_asset, evaluation_checks, reference_asset, training_asset

Series: TypeAlias = Any

MODEL = "arrival_delay"
VALIDATION_START = "2013-06-01"
WINDOW = dg.SpecificPartitionsPartitionMapping(TRAINING_MONTHS)

CATEGORIES = ["carrier", "origin", "dest"]
NOT_FEATURES = ["flight_id", "event_timestamp", "late", "tailnum", "route", "minute_of_week"]


def departures(flights: DataFrame, airports: DataFrame) -> DataFrame:
    """What a caller knows of each flight at its scheduled departure, and the answer that was not known then.

    One row per scheduled flight, in the source's order. `late` is missing for flights that never arrived.
    """
    flown = with_instants(flights, airports)
    local = flown["scheduled"].dt.tz_convert(NEW_YORK)
    entities = flown[["flight_id", "carrier", "origin", "dest", "route"]].assign(
        event_timestamp=flown["scheduled"],
        tailnum=flown["tailnum"].fillna("unknown"),
        distance=flown["distance"].astype(float),
        scheduled_minutes=flown["scheduled_minutes"],
        minute_of_week=local.dt.dayofweek * 1440 + local.dt.hour * 60 + local.dt.minute,
    )
    entities["late"] = (flown["arr_delay"] > LATE_MINUTES).astype(float).where(flown["arr_delay"].notna())
    return entities


@dataset_asset(
    path="training/entities.parquet",
    ins={"flights": dg.AssetIn(partition_mapping=WINDOW)},
    group_name="training",
    code_version="1",
    automation_condition=FRESH,
)
def training_entities(flights: DataFrame, airports: DataFrame) -> DataFrame:
    """Every flight of the training months, with the label that became known on arrival."""
    return departures(flights, airports)


training_set = training_set_asset(
    name="training_set",
    feature_service="arrival_delay",
    entities=training_entities,
    io_manager_key="dvc_io_manager",
    deps=[
        *(dg.AssetDep(view, partition_mapping=WINDOW) for view in VIEWS),
        dg.AssetDep("plane_attributes"),
    ],
    group_name="training",
    automation_condition=FRESH,
)


def model_inputs(frame: DataFrame) -> DataFrame:
    """The columns the model sees, numbers as float64 and categories as text, in a fixed order."""
    columns = [*CATEGORIES, *sorted(set(frame.columns) - {*CATEGORIES, *NOT_FEATURES})]
    return frame[columns].astype({c: str if c in CATEGORIES else "float64" for c in columns})


def learned_and_later(training_set: DataFrame) -> tuple[DataFrame, DataFrame]:
    """The flights that arrived, before the validation month and in it."""
    import pandas as pd

    known = training_set.dropna(subset=["late"])
    later = known["event_timestamp"] >= pd.Timestamp(VALIDATION_START, tz=NEW_YORK)
    return known[~later], known[later]


def timetable_rates(rows: DataFrame, training_set: DataFrame) -> Series:
    """The share of late flights per carrier and scheduled hour before: what a timetable alone can tell of `rows`."""
    hour = "departure_minute"
    train, _ = learned_and_later(training_set)
    rates = train.groupby(["carrier", train[hour] // 60])["late"].mean().rename("rate").reset_index()
    keyed = rows[["carrier"]].assign(**{hour: rows[hour] // 60})
    return keyed.merge(rates, how="left", on=["carrier", hour])["rate"].fillna(train["late"].mean())


def fit_and_log(training_set: DataFrame) -> None:
    """Train, and log into MLflow's active run what a repetition of it has to match."""
    import mlflow
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    from dagster_mlops.mlflow.models import log_model

    train, validation = learned_and_later(training_set)
    features, labels = model_inputs(train), train["late"].astype(int)

    params = {"max_iter": 300, "learning_rate": 0.05, "max_leaf_nodes": 31, "min_samples_leaf": 100}
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=float("nan"))
    model = make_pipeline(
        make_column_transformer((encoder, CATEGORIES), remainder="passthrough"),
        HistGradientBoostingClassifier(**params, l2_regularization=1.0, random_state=7),
    ).fit(features, labels)

    inputs = model_inputs(validation)
    probability = model.predict_proba(inputs)[:, 1]
    mlflow.log_params(
        {**params, "train_rows": len(train), "validation_rows": len(validation), "features": inputs.shape[1]}
    )
    late = validation["late"]
    mlflow.log_metrics(
        {
            "auc": float(roc_auc_score(late, probability)),
            "pr_auc": float(average_precision_score(late, probability)),
            "log_loss": float(log_loss(late, probability)),
            "brier": float(brier_score_loss(late, probability)),
        }
    )
    log_model(model, inputs, pyfunc_predict_fn="predict_proba")


@training_asset(
    registered_model_name=MODEL,
    experiment=MODEL,
    seed=7,
    group_name="training",
    code_version="1",
    automation_condition=FRESH,
)
def arrival_delay_model(training_set: DataFrame) -> None:
    """Gradient boosting on everything known at scheduled departure."""
    fit_and_log(training_set)


@dataset_asset(
    path="training/golden_set.parquet",
    group_name="training",
    code_version="1",
    automation_condition=FRESH,
)
def golden_set(training_set: DataFrame) -> DataFrame:
    """Rows on which every deployment must answer exactly what the registered model answers."""
    return model_inputs(training_set.sample(256, random_state=7)).reset_index(drop=True)


# What the model learned from and what it says of it: the yardstick for production data, which each version keeps.
reference = reference_asset(
    name="reference",
    model=arrival_delay_model,
    rows=training_set,
    label="late",
    features=model_inputs,
    prediction="probability",
    seed=7,
    io_manager_key="dvc_io_manager",
    metadata={PATH_KEY: "training/reference.parquet"},
    group_name="training",
    code_version="2",
    automation_condition=FRESH,
)


@dataset_asset(
    path="training/validation.parquet",
    group_name="training",
    code_version="1",
    automation_condition=FRESH,
)
def validation_rows(training_set: DataFrame) -> DataFrame:
    """The flights of the last training month, which the model has not seen."""
    return learned_and_later(training_set)[1].reset_index(drop=True)


def day(rows: DataFrame) -> Series:
    """The day of each flight: the weather and the delays of a day hang together."""
    return rows["event_timestamp"].dt.tz_convert(NEW_YORK).dt.date


arrival_delay_evaluation = evaluation_asset(
    name="arrival_delay_evaluation",
    model=arrival_delay_model,
    rows=validation_rows,
    label="late",
    features=model_inputs,
    slices=["origin", "carrier", {"evening": "departure_minute >= 1080", "long haul": "distance >= 2000"}],
    group=day,
    baselines={"carrier and hour": timetable_rates},
    training_rows=training_set,
    importance_rows=1000,
    seed=7,
    card={
        "Intended use": "Says at scheduled departure how likely a flight from New York City arrives more than "
        f"{LATE_MINUTES} minutes late. It ranks flights; it does not say why.",
        "Limitations": "Learned from five months of flights from three airports. What it says of summer, of other "
        "airports and of new carriers was not measured. Flights that never arrive have no label and are left out.",
    },
    group_name="training",
    code_version="1",
    automation_condition=FRESH,
)


SPARSE = {"wind_gust": 0.9, "pressure": 0.3, "plane_built": 0.3, "plane_seats": 0.3, "plane_engines": 0.3}

training_checks = [
    *training_set_checks(
        asset=training_set,
        feature_service="arrival_delay",
        label="late",
        max_null_share=SPARSE,
        unique=["flight_id"],
    ),
    online_offline_parity_check(asset=training_set, feature_service="arrival_delay"),
]
model_checks = evaluation_checks(
    evaluation=arrival_delay_evaluation,
    bounds={"auc": (0.7, None), "pr_auc": (0.5, None)},
    slice_bounds={"auc": (0.6, None)},
    max_drop={"auc": 0.005},
    slice_max_drop={"auc": 0.03},
)
