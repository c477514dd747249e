"""Logs a fitted model of any flavour so that it can be served and loaded safely, without waiting for pip."""

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dagster_mlops.core.model_digest import model_digest
from dagster_mlops.core.model_formats import stored_format
from dagster_mlops.core.model_judgement import named_types
from dagster_mlops.core.model_loading import DIGEST, FORMAT
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow import upstream
from dagster_mlops.mlflow.lazy import ModelInfo, mlflow
from dagster_mlops.mlflow.models import flavors
from dagster_mlops.mlflow.models.requirements import requirements
from dagster_mlops.mlflow.server.client import stored_folder

_EXAMPLE_ROWS = 5
_PREDICTED_ROWS = 100  # enough for the type and shape of the predictions

# Set while a trial of a sweep runs: its model is only stored when it is the best so far.
deferred: "ContextVar[list[Callable[[], ModelInfo]] | None]" = ContextVar("deferred", default=None)


@dataclass(frozen=True)
class FittedModel:
    """The return value of an asset whose model an IO manager stores: the model, and example rows of its input.

        @dg.asset(io_manager_key="models")
        def arrival_delay(training_set: pd.DataFrame) -> FittedModel:
            model = RandomForestClassifier().fit(X, y)
            return FittedModel(model, X, metrics={"auc": 0.71}, options={"pyfunc_predict_fn": "predict_proba"})

    `example` and `options` are those of :func:`log_model`; `metrics` and `params` are those of the MLflow run.
    """

    model: Any
    example: Any
    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def log_model(
    model: Any,
    example: Any,
    *,
    name: str = "model",
    serialization: Literal["safe", "pickle"] = "safe",
    trust: Sequence[str] = (),
    verify: bool = True,
    **native_options: Any,
) -> "ModelInfo | None":
    """Log a fitted model to the active MLflow run with signature, input example and requirements.

        with mlflow.start_run():                   # or inside the function of a training_asset
            log_model(RandomForestClassifier().fit(X, y), X)

    The model's class decides on MLflow's flavour: scikit-learn and what has its interface, XGBoost, LightGBM, CatBoost,
    Keras, PyTorch, statsmodels or ``mlflow.pyfunc.PythonModel``. `example` is an input of the model, such as the
    training frame: the signature describes all its rows. The input example, which whoever reads the model sees, is
    five rows, each mixed from the columns of the first five. The requirements are the installed versions of the
    packages that the model consists of. Options of MLflow's own ``log_model`` (``pyfunc_predict_fn="predict_proba"``,
    ``input_example``, ``code_paths``, ``registered_model_name``, …) take precedence.

    **Safe**: scikit-learn models are stored with skops, neural networks as graphs, boosters as data. A skops file may
    name classes of scikit-learn, NumPy, SciPy, pandas, LightGBM, XGBoost, CatBoost and imbalanced-learn, a network the
    layers and operators of Keras and PyTorch, and any the packages, types or operators in `trust`.
    ``serialization="pickle"`` allows any model, and lets anyone who can write the file run code where it is loaded. The
    tag ``dagster_mlops.format`` of the logged model names the format.

    `verify` loads the model back, compares its predictions for the example rows with those of the model in memory, and
    writes the hash of its files to the tag ``dagster_mlops.sha256``. For that, a model that is stored on another
    machine is downloaded once.

    Inside a trial of a sweep, None is returned: the model is stored later, when the trial's value is the best so far.

    Raises:
        TrainingRunError: no flavour is known for the class, the model cannot be stored safely, or the stored one has
            different predictions.
    """
    store = functools.partial(_store, model, example, name, serialization, trust, verify, native_options)
    if (deferred_models := deferred.get()) is not None:
        deferred_models.append(store)
        return None
    return store()


def _store(
    model: Any,
    example: Any,
    name: str,
    serialization: str,
    trust: Sequence[str],
    verify: bool,
    native: dict[str, Any],
) -> "ModelInfo":
    flavor = flavors.flavor_of(model)
    if type(example).__module__.startswith("pandas") and example.ndim == 1:
        raise TrainingRunError(
            "`example` is a Series. MLflow calls models with frames and arrays: let the pipeline start with "
            f"make_column_transformer((…, {example.name!r})), and pass the frame."
        )
    if flavor in ("pytorch", "keras") and hasattr(example, "columns"):
        raise TrainingRunError(
            "`example` is a frame, and MLflow calls networks with arrays. Write log_model(network, "
            "frame.to_numpy('float32')). Evaluations can give it frames all the same."
        )
    options = {**flavors.storing(model, flavor, serialization, trust, native), **native}
    function = native.get("pyfunc_predict_fn", "predict")
    plain_example, first = flavors.plain(example), flavors.first_rows
    # The model's readers see its input example: a row of the training frame may be a customer.
    rows = native.get("input_example", flavors.mixed_rows(first(example, _EXAMPLE_ROWS)))
    mixed_example = flavors.mixed_rows(first(plain_example, _EXAMPLE_ROWS))
    input_example = flavors.plain(rows) if "input_example" in native else mixed_example
    if options.get("serialization_format") == "pt2" and len(input_example) == 1:
        rows = input_example = input_example.repeat(2, axis=0)  # exported for one row, a network accepts only one
    if not {"pip_requirements", "conda_env", "extra_pip_requirements"} & native.keys():
        options["pip_requirements"] = requirements(model, example, options)
    predictions: Any = None
    checked: list[tuple[str, bytes]] = []

    def note(folder: Path, answers: Any) -> None:
        if verify and flavors.are_equal(predictions, answers):
            checked.append(_files(folder))

    with flavors.evaluating(model, flavor):
        if predict := flavors.predict_function(model, flavor, function):
            predictions = predict(rows)
            if "signature" not in native:
                output = predict(flavors.first_rows(example, _PREDICTED_ROWS))
                options["signature"] = mlflow.models.infer_signature(plain_example, flavors.plain(output))
        try:
            with upstream.answers_before_upload(note):
                info = flavors.log_function(flavor)(model, name=name, **{**options, "input_example": input_example})
        except Exception as error:
            if options.get("serialization_format") != "pt2":
                raise
            raise TrainingRunError(
                f"PyTorch cannot export {flavors.name_of(type(model))} as a graph: {type(error).__name__}: "
                f"{str(error)[:500]}\n"
                'Change what it names, or write log_model(…, serialization="pickle"): then anyone who can write the '
                "file can run code where it is loaded."
            ) from error
    client = mlflow.MlflowClient()
    tags: dict[str, str] = {}
    files = flavors.files_as_written(info, flavor, options)
    try:
        if verify:
            with tempfile.TemporaryDirectory(prefix="dagster-mlops-model-") as scratch:
                folder = stored_folder(info.artifact_path, scratch)
                files = named_types(folder)
                tags[DIGEST], _ = content = _files(folder)
                # MLflow has asked these very files already, but not apart from other code of the same name, nor in the
                # types that it refuses, and a class of the user's may depend on the folder that it was saved in.
                has_code = flavor == "pyfunc" or any(stored.get("code") for stored in info.flavors.values())
                if has_code or flavors.refused_columns(example) or content not in checked:
                    flavors.verify_stored(folder, info, flavor, input_example, predictions, function, example)
        form = stored_format(info.flavors, files=files, trust=[*trust, *native.get("skops_trusted_types", ())])
        if serialization == "safe" and form.foreign:
            raise TrainingRunError(flavors.distrust(model, form.foreign))
    except Exception:
        client.finalize_logged_model(info.model_id, "FAILED")
        raise
    tags[FORMAT] = str(form)
    client.set_logged_model_tags(info.model_id, tags)
    return info


def _files(folder: Path) -> tuple[str, bytes]:
    """The content of a stored model: the hash of its files, and its description."""
    return model_digest(folder), (folder / "MLmodel").read_bytes()
