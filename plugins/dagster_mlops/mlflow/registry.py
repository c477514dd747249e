"""Model versions in MLflow's registry, and the record that each of them carries."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dagster_mlops._extras import extra
from dagster_mlops.mlflow.runs import RECORD
from dagster_mlops.provenance import ModelVersion, Record, TrainingRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion


def register(
    client: "MlflowClient", name: str, model_id: str, run: "Run", record: TrainingRun, datasets: Mapping[str, str]
) -> ModelVersion:
    """Make the run's model a version of the registered model `name`, unless it is one already."""
    run_id = run.info.run_id
    source = f"models:/{model_id}"
    there = [
        version
        for version in client.search_model_versions(f"run_id='{run_id}'")
        if version.name == name and model_id in (version.model_id, str(version.source).rpartition("/")[2])
    ]
    version = there[0] if there else extra("mlflow").register_model(source, name)
    made = ModelVersion(
        name=name,
        version=str(version.version),  # an int from sqlite, a str from a server
        run_id=run_id,
        tracking_uri=record.tracking_uri,
        datasets=dict(datasets),
        metrics=finite_metrics(run),
        upstream=(record.ref,),
        dagster_run_id=record.dagster_run_id,
        dagster_asset=record.dagster_asset,
        dagster_partition=record.dagster_partition,
    )
    client.set_model_version_tag(name, made.version, RECORD, made.to_json())
    return made


def finite_metrics(run: "Run") -> dict[str, float]:
    """A run's metrics as plain floats. JSON, and with it a record, has no NaN and no infinity."""
    metrics = {name: float(value) for name, value in sorted(run.data.metrics.items())}
    return {name: value for name, value in metrics.items() if math.isfinite(value) and not name.startswith("system/")}


def version_record(version: "MlflowModelVersion", tracking_uri: str) -> ModelVersion:
    """The record of a version with its aliases of now; a bare one where the version was registered by other means.

    Raises:
        ProvenanceError: the version carries a record that cannot be read.
    """
    text = version.tags.get(RECORD)
    record = Record.from_json(text) if text else None
    if not isinstance(record, ModelVersion):
        record = ModelVersion(
            name=version.name,
            version=str(version.version),
            run_id=version.run_id or "",
            tracking_uri=tracking_uri,
        )
    return dataclasses.replace(record, aliases=tuple(sorted(version.aliases)))
