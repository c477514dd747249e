"""From flights to a tracked model: entities, training set, gradient boosting, golden and reference sets."""

from typing import Any, TypeAlias

import dagster as dg

from assets.data import NEW_YORK, DataFrame, with_instants
from assets.features import FRESH, LATE_MINUTES, VIEWS
from dagster_mlops.asset_records import upstream_records
from dagster_mlops.dvc import dataset_asset
from dagster_mlops.feast import online_offline_parity_check, training_set_asset, training_set_checks
from dagster_mlops.mlflow import MlflowResource, metric_checks, training_asset
from dagster_mlops.provenance import ModelVersion

Series: TypeAlias = Any

MODEL = "arrival_delay"
TRAINING_MONTHS = [f"2013-{month:02}-01" for month in range(1, 7)]
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
    entities=training_entities.key,
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


def baseline_rates(train: DataFrame, rows: DataFrame) -> Series:
    """The share of late flights per carrier and scheduled hour in `train`: what a timetable alone can tell."""
    hour = "departure_minute"
    rates = train.groupby(["carrier", train[hour] // 60])["late"].mean().rename("rate").reset_index()
    keyed = rows[["carrier"]].assign(**{hour: rows[hour] // 60})
    return keyed.merge(rates, how="left", on=["carrier", hour])["rate"].fillna(train["late"].mean())


def fit_and_log(training_set: DataFrame) -> None:
    """Train, judge on the validation month, and log everything into MLflow's active run."""
    import mlflow
    import pandas as pd
    import sklearn
    from mlflow.models import infer_signature
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    known = training_set.dropna(subset=["late"])
    later = known["event_timestamp"] >= pd.Timestamp(VALIDATION_START, tz=NEW_YORK)
    train, validation = known[~later], known[later]
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
    mlflow.log_metrics(_scores(validation["late"], probability, baseline_rates(train, validation)))
    mlflow.log_figure(_curves(validation["late"], probability), "validation.png")
    mlflow.sklearn.log_model(  # pyright: ignore[reportPrivateImportUsage] (MLflow imports its flavors lazily)
        model,
        name="model",
        signature=infer_signature(inputs, model.predict_proba(inputs.head())),
        input_example=inputs.head(3),
        pyfunc_predict_fn="predict_proba",
        pip_requirements=[f"scikit-learn=={sklearn.__version__}", f"pandas=={pd.__version__}"],
        # A skops file loads these types and no other; a pickle would run whatever it holds.
        skops_trusted_types=["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"],
    )


@training_asset(
    registered_model_name=MODEL,
    experiment=MODEL,
    seed=7,
    group_name="training",
    code_version="1",
    automation_condition=FRESH,
)
def arrival_delay_model(training_set: DataFrame) -> None:
    """Gradient boosting on everything known at scheduled departure, judged on the last training month."""
    fit_and_log(training_set)


def _scores(late: Series, probability: Any, by_timetable: Series) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

    return {
        "auc": float(roc_auc_score(late, probability)),
        "pr_auc": float(average_precision_score(late, probability)),
        "log_loss": float(log_loss(late, probability)),
        "brier": float(brier_score_loss(late, probability)),
        "late_share": float(late.mean()),
        # Two baselines, for honesty: always "on time" ranks nothing, and the timetable knows carrier and hour.
        "auc_always_no": 0.5,
        "pr_auc_always_no": float(late.mean()),
        "auc_carrier_hour": float(roc_auc_score(late, by_timetable)),
        "pr_auc_carrier_hour": float(average_precision_score(late, by_timetable)),
    }


def _curves(late: Series, probability: Any) -> Any:
    from matplotlib.figure import Figure
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure = Figure(figsize=(9, 3), layout="constrained")
    roc, precision, calibration = figure.subplots(1, 3)
    fall_out, recall, _ = roc_curve(late, probability)
    roc.plot(fall_out, recall)
    roc.plot([0, 1], [0, 1], "--", color="grey")
    roc.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    precisions, recalls, _ = precision_recall_curve(late, probability)
    precision.plot(recalls, precisions)
    precision.axhline(late.mean(), ls="--", color="grey")
    precision.set(title="Precision–recall", xlabel="recall", ylabel="precision", ylim=(0, 1))
    observed, predicted = calibration_curve(late, probability, n_bins=15, strategy="quantile")
    calibration.plot(predicted, observed, "o-")
    calibration.plot([0, 1], [0, 1], "--", color="grey")
    calibration.set(title="Calibration", xlabel="predicted", ylabel="observed")
    return figure


def candidate(context: dg.AssetExecutionContext) -> ModelVersion:
    """The model version that the upstream training asset registered last."""
    return next(record for record in upstream_records(context) if isinstance(record, ModelVersion))


@dataset_asset(
    path="training/golden_set.parquet",
    group_name="training",
    code_version="1",
    automation_condition=FRESH,
)
def golden_set(training_set: DataFrame) -> DataFrame:
    """Rows on which every deployment must answer exactly what the registered model answers."""
    return model_inputs(training_set.sample(256, random_state=7)).reset_index(drop=True)


@dataset_asset(
    path="training/reference.parquet",
    deps=[arrival_delay_model],
    group_name="training",
    code_version="1",
    automation_condition=FRESH,
)
def reference(context: dg.AssetExecutionContext, training_set: DataFrame, mlflow: MlflowResource) -> DataFrame:
    """What the model learned from and what it says of it: the yardstick for production data."""
    version = candidate(context)
    rows = training_set.dropna(subset=["late"]).sample(30_000, random_state=7).sort_index()
    inputs = model_inputs(rows)
    with mlflow.activate():
        from mlflow import pyfunc

        model = pyfunc.load_model(f"models:/{version.name}/{version.version}")
    return inputs.assign(probability=model.predict(inputs)[:, 1], late=rows["late"]).reset_index(drop=True)


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
model_checks = metric_checks(
    asset=arrival_delay_model, bounds={"auc": (0.7, None), "pr_auc": (0.5, None)}, blocking=True
)
