"""A training run on its asset's page in Dagster: metrics, params, figures and a link."""

import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from dagster_mlops.core.environment import environment
from dagster_mlops.core.metadata import link, table
from dagster_mlops.core.pictures import MOST_BYTES, Picture, drawn, failed, markdown
from dagster_mlops.core.run_files import CODE
from dagster_mlops.mlflow.lazy import ArtifactRepository, Run
from dagster_mlops.mlflow.metadata_keys import METRIC, RUN_URL
from dagster_mlops.mlflow.registry.versions import finite_metrics
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.server.client import request_limits
from dagster_mlops.mlflow.training.capture import artifact_store
from dagster_mlops.mlflow.training.checkpoints import FOLDER
from dagster_mlops.provenance import TrainingRun

_FIGURES = 3
_FOLDERS = 5  # that are listed: each takes a request


def present_run(resource: MlflowResource, run: "Run", record: TrainingRun) -> tuple[dict[str, Any], TrainingRun]:
    """Metadata of a run, and its record with the metrics filled in."""
    metrics = finite_metrics(run)
    metadata: dict[str, Any] = {f"{METRIC}/{name}": value for name, value in metrics.items()}
    metadata |= table("mlflow/params", [{"param": name, "value": v} for name, v in sorted(run.data.params.items())])
    metadata |= link(RUN_URL, resource.run_url(run.info.experiment_id, run.info.run_id))
    if figures := markdown(_figures(resource, run)):
        metadata["mlflow/figures"] = figures
    return metadata, dataclasses.replace(record, metrics=metrics, params=dict(sorted(run.data.params.items())))


def _figures(resource: MlflowResource, run: "Run") -> list[Picture]:
    """The first small PNG files among the run's artifacts."""
    try:
        with environment(**request_limits(retries=3)), tempfile.TemporaryDirectory() as folder:
            store = artifact_store(resource, run)
            top = store.list_artifacts()
            folders = [file.path for file in top if file.is_dir and file.path not in (CODE, FOLDER)][:_FOLDERS]
            below = [file for path in folders for file in store.list_artifacts(path)]
            small = [f.path for f in [*top, *below] if f.path.endswith(".png") and 0 < (f.file_size or 0) <= MOST_BYTES]
            return [drawn(path, partial(_content, store, path, folder), tool="mlflow") for path in small[:_FIGURES]]
    except Exception as error:  # noqa: BLE001 - whatever a store raises, no training fails for a picture
        return [failed(f"What MLflow run {run.info.run_id} logged", error)]


def _content(store: "ArtifactRepository", path: str, folder: str) -> bytes:
    return Path(store.download_artifacts(path, folder)).read_bytes()
