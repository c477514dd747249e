"""A training run as people look at it in Dagster: numbers, params, figures and a link."""

import base64
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.environment import environment
from dagster_mlops.core.run_files import CODE
from dagster_mlops.mlflow.registry.versions import finite_metrics
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.server.settings import request_limits
from dagster_mlops.mlflow.training.capture import artifact_store
from dagster_mlops.mlflow.training.checkpoints import FOLDER
from dagster_mlops.provenance import TrainingRun, mask_credentials

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

_FIGURES = 3
_FOLDERS = 5  # that are looked into: each is a request
_FIGURE_BYTES = 60_000


def present_run(resource: MlflowResource, run: "Run", record: TrainingRun) -> tuple[dict[str, Any], TrainingRun]:
    """Metadata of a run, and its record with the metrics filled in."""
    metrics = finite_metrics(run)
    metadata: dict[str, Any] = {f"mlflow/metric/{name}": value for name, value in metrics.items()}
    if run.data.params:
        rows = [dg.TableRecord({"param": name, "value": value}) for name, value in sorted(run.data.params.items())]
        metadata["mlflow/params"] = dg.MetadataValue.table(rows)
    if url := resource.run_url(run.info.experiment_id, run.info.run_id):
        metadata["mlflow/run_url"] = dg.MetadataValue.url(url)
    try:
        with environment(**request_limits(retries=3)):
            figures = _figures(artifact_store(resource, run))
        if figures:
            metadata["mlflow/figures"] = dg.MetadataValue.md("\n\n".join(figures))
    except Exception as error:  # noqa: BLE001 - whatever a store says, a picture does not cost a training
        text = f"The figures of MLflow run {run.info.run_id} cannot be shown: {mask_credentials(str(error))[:500]}"
        dg.get_dagster_logger().warning(text)
    return metadata, dataclasses.replace(record, metrics=metrics, params=dict(sorted(run.data.params.items())))


def _figures(store: "ArtifactRepository") -> list[str]:
    """The first small PNG files among the run's artifacts, inline: Dagster has no metadata type for images."""
    top = store.list_artifacts()
    folders = [file.path for file in top if file.is_dir and file.path not in (CODE, FOLDER)][:_FOLDERS]
    below = [file for folder in folders for file in store.list_artifacts(folder)]
    small = [
        file.path
        for file in [*top, *below]
        if file.path.endswith(".png") and 0 < (file.file_size or 0) <= _FIGURE_BYTES
    ]
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for path in small[:_FIGURES]:
            png = Path(store.download_artifacts(path, folder)).read_bytes()
            figures.append(f"![{path}](data:image/png;base64,{base64.b64encode(png).decode()})")
    return figures
