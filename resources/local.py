"""Everything embedded, on this machine, below one state folder."""

from dagster_mlops.bentoml import BentomlResource
from dagster_mlops.dvc import DvcResource, dvc_io_manager
from dagster_mlops.evidently import EvidentlyResource
from dagster_mlops.feast import FeastResource
from dagster_mlops.mlflow import MlflowResource
from resources import FEATURE_REPO, STATE

TRACKING_URI = f"sqlite:///{STATE}/mlflow/mlflow.db"


def resources() -> dict[str, object]:
    """A DVC remote in a folder, Feast on DuckDB and SQLite, MLflow on SQLite, BentoML behind Envoy on loopback."""
    return {
        "dvc": DvcResource(repo=str(STATE / "data"), remote_url=str(STATE / "dvc-remote")),
        "dvc_io_manager": dvc_io_manager,
        "feast": FeastResource(repo=FEATURE_REPO),
        "mlflow": MlflowResource(tracking_uri=TRACKING_URI, artifact_location=str(STATE / "mlflow" / "artifacts")),
        "bentoml": BentomlResource(home=str(STATE / "bentoml"), tracking_uri=TRACKING_URI),
        "evidently": EvidentlyResource(reports=str(STATE / "reports")),
    }
