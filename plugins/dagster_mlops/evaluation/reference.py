"""The reference distribution of a version: training rows and their predictions, kept with the version itself."""

import hashlib
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.arrays import PyFuncModel, pd
from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
from dagster_mlops.core.failures import not_retried, raised_as
from dagster_mlops.core.inside import plain_name
from dagster_mlops.core.model_versions import content_hashes, made_by, parse_version, registry_kind
from dagster_mlops.core.options import asset_with
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.core.run_files import MONITORING
from dagster_mlops.errors import DagsterMlopsError, EvaluationError, ModelVersionError
from dagster_mlops.provenance import NAMESPACE, ModelVersion
from dagster_mlops.tools import HoldsModels, KeepsFiles, ModelRegistry

if TYPE_CHECKING:
    from dagster_mlops.evaluation.metrics import Task
    from dagster_mlops.evaluation.predictions import Features, Labels

REFERENCE = f"{NAMESPACE}.reference"
"""Key of the note on a version with path, content hash and rows of its reference distribution, as JSON."""


def reference_asset(
    *,
    name: str,
    model: AssetLike,
    rows: AssetLike | dg.AssetIn,
    label: str,
    features: "Features" = None,
    prediction: str = "prediction",
    sample: int | None = 30_000,
    seed: int = 0,
    task: "Task | None" = None,
    positive: Any = None,
    classes: Sequence[Any] | None = None,
    registry: str = "mlflow",
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset with a sample of the rows that `model` was trained on, and the predictions of its latest version.

        reference = reference_asset(
            name="reference", model=arrival_delay_model, rows=training_set, label="late", prediction="probability",
            io_manager_key="dvc_io_manager",
        )

    Its columns are the model's inputs, `prediction` and `label`. The IO manager stores it as it stores any asset, for
    drift and performance checks to compare with. And it belongs to the version: as a file beside its model (in MLflow,
    an artifact of the training run), with path and hash in the version's note ``dagster_mlops.reference``, so that
    :func:`load_reference` gives it back also after a rollback, and in another repository.

    Args:
        name: Name of the asset.
        model: The training asset.
        rows: The asset that it was trained on, loaded as a dataframe by any IO manager.
        label: Column of the labels; rows without one are left out.
        features: Function that makes the model's inputs from the rows (without the label), or their names; the
            signature by default.
        prediction: Name of the column with predictions: the probability of the positive class for two classes, one
            column ``<prediction>_<class>`` for each of several, else the number or class.
        sample: Number of rows that are drawn; None takes all.
        seed: Seed of the sample.
        task, positive, classes: See :func:`evaluation_asset`.
        registry: Key of the resource that holds the models, and keeps files with them.
        asset_options: Further options of :func:`dagster.asset`.
    """
    model_key, rows_key = asset_key(model), asset_key(rows)

    @not_retried(EvaluationError, ModelVersionError)
    def reference(context: dg.AssetExecutionContext, rows: Any) -> dg.MaterializeResult:
        from dagster_mlops.evaluation import predictions  # for steps, not for code locations

        with capable_resource(context, registry, ModelRegistry).models() as models:
            record = made_by(context, model_key)
            version = models.version(record.name, record.version)
            if record.datasets and not set(content_hashes(context, rows_key)) <= set(record.datasets.values()):
                context.log.warning(
                    f"{rows_key.to_user_string()} is not what version {record.version} of {record.name!r} was "
                    "trained on. Materialize the reference in the run of the training."
                )
            labelled = predictions.labelled_rows(predictions.read_frame(rows), label, rows_key)
            labels = predictions.read_labels(labelled[label], task=task, positive=positive, classes=classes)
            few = sample is None or len(labelled) <= sample
            index = labelled.index if few else labelled.sample(sample, random_state=seed).index.sort_values()
            part = predictions.Labels(labels.task, labels.values[index], labels.classes)
            model = predictions.load_version(context, models, record).model
            frame = _scored(model, labelled.loc[index].reset_index(drop=True), part, label, features, prediction)
            note, tool = _bind(models, version, frame), models.tool
        facts = {"version": f"{record.name}/{record.version}", "rows": len(frame)}
        facts |= {"artifact": note["path"], "sha256": note["sha256"]}
        metadata = {f"{tool}/reference/{fact}": value for fact, value in facts.items()}
        return dg.MaterializeResult(value=frame, metadata=metadata)

    return asset_with(
        asset_options,
        name=name,
        description=f"Rows that {model_key.to_user_string()} was trained on, with predictions of its latest version.",
        dagster_type=dg.Any,  # its IO manager decides what can be stored
        kinds=[registry_kind(registry)],
        required_resource_keys=[registry],
        deps=[model_key],
        ins={"rows": asset_input(rows)},
    )(reference)


def load_reference(model: str, *, registry: ModelRegistry) -> "pd.DataFrame":
    """The reference distribution that belongs to a version, ``name/version`` or ``name@alias``.

    Raises:
        ModelVersionError: There is no such version, it has no reference, or the file is gone or was changed.
    """
    name, which = parse_version(model)
    if not name or not which:
        raise ModelVersionError(f"{model!r} does not name a version. Write 'name/version' or 'name@alias'.")
    with registry.models() as models:
        version = models.version(name, which)
        notes = models.notes(version)
        if REFERENCE not in notes:
            raise ModelVersionError(
                f"version {version.version} of {name!r} has no reference (note {REFERENCE}). Materialize a "
                "reference_asset right after its training."
            )
        path, sha256 = _read_note(notes[REFERENCE], version)
        content = _read(models, version, path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ModelVersionError(
            f"the reference of version {version.version} of {name!r} was changed: {path} does not have the "
            f"hash of the version's note {REFERENCE}."
        )
    return pd.read_parquet(io.BytesIO(content))


def _read_note(text: str, version: ModelVersion) -> tuple[str, str]:
    try:
        note = json.loads(text)
        return plain_name(note["path"]), str(note["sha256"])
    except (ValueError, TypeError, KeyError, DagsterMlopsError) as error:
        raise ModelVersionError(
            f"the note {REFERENCE} of version {version.version} of {version.name!r} cannot be read ({error}): someone "
            "changed it. Materialize the reference_asset of this version again."
        ) from error


def _scored(
    model: PyFuncModel, rows: "pd.DataFrame", labels: "Labels", label: str, features: "Features", prediction: str
) -> "pd.DataFrame":
    from dagster_mlops.evaluation.predictions import model_inputs, predict

    inputs = model_inputs(model, rows, features, label)
    answer = predict(model, inputs, labels)
    if answer.values.ndim == 2:
        columns = {f"{prediction}_{name}": answer.values[:, k] for k, name in enumerate(answer.classes)}
    elif answer.kind == "label":
        columns = {prediction: [answer.classes[k] for k in answer.values]}
    else:
        columns = {prediction: answer.values}
    return inputs.assign(**columns, **{label: rows[label]})


def _bind(models: HoldsModels, version: ModelVersion, frame: "pd.DataFrame") -> dict[str, Any]:
    """Store the frame as the version's reference, once: first the file, then the note that names it."""
    if not isinstance(models, KeepsFiles):
        raise EvaluationError(f"{models.tool} keeps no files with a version, and so no reference distribution.")
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    content = file.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    # Each reference of a version has a name of its own, so that the note never points to a part of a file.
    path = f"{MONITORING}/reference-{digest[:12]}.parquet"
    note = {"path": path, "sha256": digest, "rows": len(frame)}
    if models.notes(version).get(REFERENCE) == json.dumps(note):
        return note
    models.write_file(version, path, content)
    if hashlib.sha256(_read(models, version, path)).hexdigest() != digest:
        raise ModelVersionError(f"file {path} of version {version.version} is not what was written. Run this again.")
    models.note(version, REFERENCE, json.dumps(note))
    return note


def _read(models: HoldsModels, version: ModelVersion, path: str) -> bytes:
    what = f"the reference of version {version.version} of {version.name!r} is gone"
    with raised_as(ModelVersionError, what, ModelVersionError):
        if isinstance(models, KeepsFiles):
            return models.read_file(version, path)
        raise ModelVersionError(f"{models.tool} keeps no files.")
