"""The reference distribution of a version: what it was trained on and says of it, kept with the version itself."""

import hashlib
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
from dagster_mlops.core.extras import extra
from dagster_mlops.core.options import merged_options
from dagster_mlops.core.run_files import MONITORING
from dagster_mlops.errors import EvaluationError, ModelVersionError
from dagster_mlops.mlflow.evaluation.metrics import Task
from dagster_mlops.mlflow.evaluation.predictions import (
    Features,
    Labels,
    known_rows,
    load_model,
    model_inputs,
    predict,
    read_frame,
    read_labels,
)
from dagster_mlops.mlflow.registry.aliases import Registry
from dagster_mlops.mlflow.registry.candidate import content_hashes, made_by
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.provenance import NAMESPACE, mask_credentials

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion
    from mlflow.pyfunc import PyFuncModel

REFERENCE = f"{NAMESPACE}.reference"
"""Tag of a version: artifact path, content hash and rows of its reference distribution, as JSON."""


def reference_asset(
    *,
    name: str,
    model: AssetLike,
    rows: AssetLike | dg.AssetIn,
    label: str,
    features: Features = None,
    prediction: str = "prediction",
    sample: int | None = 30_000,
    seed: int = 0,
    task: Task | None = None,
    positive: Any = None,
    classes: Sequence[Any] | None = None,
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset with a sample of the rows that `model` learned from, and what its latest version says of them.

        reference = reference_asset(
            name="reference", model=arrival_delay_model, rows=training_set, label="late", prediction="probability",
            io_manager_key="dvc_io_manager",
        )

    Its columns are the model's inputs, `prediction` and `label`. The IO manager stores it as it stores any asset, for
    drift and performance checks to compare with. And it belongs to the version: as an artifact of the training run,
    with path and hash in the version's tag ``dagster_mlops.reference``, so that :func:`load_reference` gives it back
    also after a rollback, and in another repository.

    Args:
        name: of the asset.
        model: the training asset.
        rows: the asset that it was trained on, loaded as a dataframe by any IO manager.
        label: column of the answers; rows without one are left out.
        features: makes the model's inputs of the rows (without the label), or names them; the signature by default.
        prediction: name of the column with predictions: the probability of the positive class for two classes, one
            column ``<prediction>_<class>`` for each of several, else the number or class.
        sample: rows that are drawn; None takes all.
        seed: of the sample.
        task, positive, classes: as of :func:`evaluation_asset`.
        asset_options: whatever :func:`dagster.asset` takes. The resource key is ``mlflow``.
    """
    model_key, rows_key = asset_key(model), asset_key(rows)

    def reference(context: dg.AssetExecutionContext, mlflow: MlflowResource, rows: Any) -> dg.MaterializeResult:
        try:
            with mlflow.activate() as client:
                record = made_by(context, model_key)
                version = Registry(client, record.name, "").version(record.version)
                hashes = set(content_hashes(context, rows_key))
                if record.datasets and not hashes <= set(record.datasets.values()):
                    context.log.warning(
                        f"{rows_key.to_user_string()} is not what version {record.version} of {record.name!r} was "
                        "trained on. Materialize the reference in the run of the training."
                    )
                known = known_rows(read_frame(rows), label, rows_key)
                labels = read_labels(known[label], task=task, positive=positive, classes=classes)
                few = sample is None or len(known) <= sample
                chosen = known.index if few else known.sample(sample, random_state=seed).index.sort_values()
                part = Labels(labels.task, labels.values[chosen], labels.classes)
                model = load_model(context, mlflow, record).model
                frame = _scored(model, known.loc[chosen].reset_index(drop=True), part, label, features, prediction)
                tag = _bind(client, version, frame)
        except (EvaluationError, ModelVersionError) as error:
            # Asking once more would find the same.
            raise dg.Failure(str(error), allow_retries=False) from error
        facts = {
            "mlflow/reference/version": f"{record.name}/{record.version}",
            "mlflow/reference/rows": len(frame),
            "mlflow/reference/artifact": tag["path"],
            "mlflow/reference/sha256": tag["sha256"],
        }
        return dg.MaterializeResult(value=frame, metadata=facts)

    options = merged_options(
        asset_options,
        name=name,
        description=f"Rows that {model_key.to_user_string()} learned from, with what its latest version says.",
        dagster_type=dg.Any,  # its IO manager says what can be stored
        kinds=["mlflow"],
        deps=[model_key],
        ins={"rows": asset_input(rows)},
    )
    return dg.asset(**options)(reference)


def load_reference(model: str, *, mlflow: MlflowResource) -> "pd.DataFrame":
    """The reference distribution that belongs to a version, ``name/version`` or ``name@alias``.

        champion = load_reference("arrival_delay@champion", mlflow=MlflowResource(tracking_uri="http://mlflow:5000"))

    Raises:
        ModelVersionError: there is no such version, it has no reference, or the artifact is gone or was changed.
        TrackingError: MLflow cannot be asked.
    """
    by_alias = "@" in model
    name, _, which = model.rpartition("@" if by_alias else "/")
    if not name or not which:
        raise ModelVersionError(f"{model!r} names no version. Write 'name/version' or 'name@alias'.")
    with mlflow.activate() as client:
        registry = Registry(client, name, which)
        version = registry.holder() if by_alias else registry.version(which)
        if version is None:
            raise ModelVersionError(f"{name!r} has no alias {which!r} in {mask_credentials(mlflow.uri)}.")
        if REFERENCE not in version.tags:
            raise ModelVersionError(
                f"version {version.version} of {name!r} has no reference (tag {REFERENCE}). Materialize a "
                "reference_asset right after its training."
            )
        tag = json.loads(version.tags[REFERENCE])
        content = _download(client, version, tag["path"])
    if hashlib.sha256(content).hexdigest() != tag["sha256"]:
        raise ModelVersionError(
            f"the reference of version {version.version} of {name!r} was changed: artifact {tag['path']} of run "
            f"{version.run_id} does not have the hash of the version's tag {REFERENCE}."
        )
    return extra("pandas", extra="mlflow").read_parquet(io.BytesIO(content))


def _scored(
    model: "PyFuncModel", known: "pd.DataFrame", labels: Labels, label: str, features: Features, prediction: str
) -> "pd.DataFrame":
    inputs = model_inputs(model, known, features, label)
    said = predict(model, inputs, labels)
    if said.values.ndim == 2:
        columns = {f"{prediction}_{name}": said.values[:, k] for k, name in enumerate(said.classes)}
    elif said.kind == "label":
        columns = {prediction: [said.classes[k] for k in said.values]}
    else:
        columns = {prediction: said.values}
    return inputs.assign(**columns, **{label: known[label]})


def _bind(client: "MlflowClient", version: "MlflowModelVersion", frame: "pd.DataFrame") -> dict[str, Any]:
    """Make the frame the version's reference: the artifact first, the tag that names it last; the same frame once."""
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    content = file.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    # Another reference of the version gets another name, so that the tag never points to half of one.
    path = f"{MONITORING}/reference-{digest[:12]}.parquet"
    tag = {"path": path, "sha256": digest, "rows": len(frame)}
    if version.tags.get(REFERENCE) == json.dumps(tag):
        return tag
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        Path(scratch, Path(path).name).write_bytes(content)
        client.log_artifact(str(version.run_id), str(Path(scratch, Path(path).name)), MONITORING)
    if hashlib.sha256(_download(client, version, path)).hexdigest() != digest:
        raise ModelVersionError(f"artifact {path} of run {version.run_id} is not what was written. Run this again.")
    client.set_model_version_tag(version.name, str(version.version), REFERENCE, json.dumps(tag))
    return tag


def _download(client: "MlflowClient", version: "MlflowModelVersion", path: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        try:
            return Path(client.download_artifacts(str(version.run_id), path, scratch)).read_bytes()
        except (OSError, extra("mlflow.exceptions").MlflowException) as error:
            raise ModelVersionError(
                f"the reference of version {version.version} of {version.name!r} is gone: artifact {path} of run "
                f"{version.run_id}: {mask_credentials(str(error))[:300]}"
            ) from error
