"""Logs a fitted model of any flavour the way it can be served, loaded without risk, and without waiting for pip."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dagster_mlops.core.extras import extra
from dagster_mlops.core.model_formats import EXPORTED_PROGRAM, StoredFormat, stored_format
from dagster_mlops.core.model_loading import DIGEST, FORMAT, model_digest
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow.models.flavors import flavor_of, log_function, name_of, storing
from dagster_mlops.mlflow.models.requirements import requirements
from dagster_mlops.mlflow.models.verification import evaluating, first_rows, plain, predict_function, verify_stored

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

_EXAMPLE_ROWS = 5
_PREDICTED_ROWS = 100  # enough for the type and shape of the output

# Set while a trial of a sweep runs, whose models are only stored when they are the best so far.
deferred: "ContextVar[list[Callable[[], ModelInfo]] | None]" = ContextVar("deferred", default=None)


@dataclass(frozen=True)
class FittedModel:
    """What an asset returns whose model an IO manager stores: the model, and what it is called with.

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
    """Log a fitted model to the active MLflow run with what training and serving need of it.

        with mlflow.start_run():                   # or inside the function of a training_asset
            log_model(RandomForestClassifier().fit(X, y), X)

    MLflow's flavour is chosen by the model's class: scikit-learn and what follows its interface, XGBoost, LightGBM,
    CatBoost, Keras, PyTorch, statsmodels or ``mlflow.pyfunc.PythonModel``. `example` is what the model is called with,
    such as the training frame: the signature describes all its rows, five of them are kept as the input example.
    Requirements are what is installed of the packages that the model consists of. Every option of MLflow's own
    ``log_model`` may be given (``pyfunc_predict_fn="predict_proba"``, ``code_paths``, ``registered_model_name``, …) and
    wins.

    **Safe**: scikit-learn models are stored with skops, neural networks as graphs, boosters as data. A skops file may
    name classes of scikit-learn, NumPy, SciPy, pandas, LightGBM, XGBoost, CatBoost and imbalanced-learn, and of the
    packages or types in `trust`. ``serialization="pickle"`` allows any model, and lets whoever can write the file run
    code where it is loaded. The tag ``dagster_mlops.format`` of the logged model says which it was.

    `verify` loads the model back, compares what it says of the kept rows with what the model in memory says, and notes
    the hash of its files in the tag ``dagster_mlops.sha256``: one download of the model.

    Inside a trial of a sweep the model waits until the trial's value is known: None is returned.

    Raises:
        TrainingRunError: the class is of no flavour known here, the model cannot be stored safely, or what was stored
            answers differently.
    """

    def store() -> "ModelInfo":
        return _store(model, example, name, serialization, trust, verify, native_options)

    if (waiting := deferred.get()) is not None:
        waiting.append(store)
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
    flavor = flavor_of(model)
    if type(example).__module__.startswith("pandas") and example.ndim == 1:
        raise TrainingRunError(
            "`example` is a Series. MLflow calls models with frames and arrays: let the pipeline begin with "
            f"make_column_transformer((…, {example.name!r})), and give it the frame."
        )
    options = {**storing(model, flavor, serialization, trust, native), **native}
    function = native.get("pyfunc_predict_fn", "predict")
    shown, rows = plain(example), native.get("input_example", first_rows(example, _EXAMPLE_ROWS))
    kept = plain(rows) if "input_example" in native else first_rows(shown, _EXAMPLE_ROWS)
    if options.get("serialization_format") == "pt2" and len(kept) == 1:
        rows = kept = kept.repeat(2, axis=0)  # exported for one row, the network would take one row ever after
    if not {"pip_requirements", "conda_env", "extra_pip_requirements"} & native.keys():
        options["pip_requirements"] = requirements(model, example, options)
    answers = None
    with evaluating(model, flavor):
        if predict := predict_function(model, flavor, function):
            answers = predict(rows)
            if "signature" not in native:
                output = predict(first_rows(example, _PREDICTED_ROWS))
                options["signature"] = extra("mlflow.models").infer_signature(shown, plain(output))
        try:
            info = log_function(flavor)(model, name=name, **{**options, "input_example": kept})
        except Exception as error:
            if options.get("serialization_format") != "pt2":
                raise
            raise TrainingRunError(
                f"PyTorch cannot export {name_of(type(model))} as a graph: {type(error).__name__}: {str(error)[:500]}\n"
                'Mend what it names, or write log_model(…, serialization="pickle"): then whoever can write the file '
                "can run code where it is loaded."
            ) from error
    client = extra("mlflow").MlflowClient()
    tags = {FORMAT: str(_format_of(info, options))}
    if verify:
        # By itself MLflow would leave what it downloads where it is.
        with tempfile.TemporaryDirectory(prefix="dagster-mlops-model-") as scratch:
            folder = Path(extra("mlflow.artifacts").download_artifacts(artifact_uri=info.model_uri, dst_path=scratch))
            tags[DIGEST] = model_digest(folder)
            try:
                verify_stored(folder, info, flavor, kept, answers, function)
            except Exception:
                client.finalize_logged_model(info.model_id, "FAILED")
                raise
    client.set_logged_model_tags(info.model_id, tags)
    return info


def _format_of(info: "ModelInfo", options: dict[str, Any]) -> StoredFormat:
    files = (EXPORTED_PROGRAM,) if options.get("serialization_format") == "pt2" else ()
    return stored_format(info.flavors, files=files)
