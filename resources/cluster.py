"""Services that several machines share: S3 for data, an MLflow server, Redis and Postgres for Feast.

The state folder (`DAGSTER_MLOPS_STATE`) is a volume that every pod mounts: it holds the checkout of the data
repository. Credentials come from the environment of the pods and are never written down: `AWS_ACCESS_KEY_ID` and
`AWS_SECRET_ACCESS_KEY` (DVC, MLflow artifacts), `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`.

| variable | example |
|---|---|
| `DAGSTER_MLOPS_STATE` | `/mnt/ml` |
| `DVC_REMOTE_URL` | `s3://ml-data/dvc` |
| `MLFLOW_TRACKING_URI` | `http://mlflow:5000` |
| `FEAST_REGISTRY_URI` | `postgresql+psycopg://feast:…@db/feast` |
| `FEAST_REDIS` | `redis:6379` |

Needs `dvc[s3]` and `feast[redis,postgres]` beside `dagster-mlops[all]`.
"""

import dagster as dg

from dagster_mlops.bentoml import BentomlResource
from dagster_mlops.dvc import DvcResource, dvc_io_manager
from dagster_mlops.evidently import EvidentlyResource
from dagster_mlops.feast import FeastResource
from dagster_mlops.mlflow import MlflowResource
from resources import ROOT, STATE


def resources() -> dict[str, object]:
    """Nothing is connected here: each resource reads its variables when a step uses it."""
    tracking_uri = dg.EnvVar("MLFLOW_TRACKING_URI")
    return {
        "dvc": DvcResource(repo=str(STATE / "data"), remote_url=dg.EnvVar("DVC_REMOTE_URL")),
        "dvc_io_manager": dvc_io_manager,
        "feast": FeastResource(repo=str(ROOT / "resources" / "feature_repo_cluster")),
        "mlflow": MlflowResource(tracking_uri=tracking_uri, ui_url=tracking_uri),
        "bentoml": BentomlResource(home=str(STATE / "bentoml"), tracking_uri=tracking_uri),
        "evidently": EvidentlyResource(reports=str(STATE / "reports")),
    }
