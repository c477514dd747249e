"""The champion: the registered version that production uses, moved only when a candidate beats it on the same rows."""

from assets.features import FRESH
from assets.training import MODEL, arrival_delay_evaluation, arrival_delay_model
from dagster_mlops.lineage import reproduction_asset
from dagster_mlops.mlflow import promotion_asset

champion = promotion_asset(
    name="champion",
    candidate=arrival_delay_model.key,
    registered_model_name=MODEL,
    metric="auc",
    evaluation=arrival_delay_evaluation,
    group_name="promotion",
    automation_condition=FRESH,
)

champion_reproduction = reproduction_asset(
    name="champion_reproduction",
    training=f"{MODEL}@champion",
    deps=[champion],
    variables=["DAGSTER_MLOPS_*", "MLFLOW_TRACKING_URI", "DVC_REMOTE_URL", "AWS_*"],  # of resources/
    group_name="promotion",
)
