"""Logs a fitted model of any flavour the way it can be served, loaded without risk, and without waiting for pip."""

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dagster_mlops._extras import extra
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow.formats import EXPORTED_PROGRAM, StoredFormat, stored_format, untrusted
from dagster_mlops.mlflow.model_requirements import requirements
from dagster_mlops.provenance import NAMESPACE

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

FORMAT, DIGEST = f"{NAMESPACE}.format", f"{NAMESPACE}.sha256"
"""Tags of a logged model: how it is stored, and the hash of its files."""

# The package that a model's class comes from, and MLflow's module for it. An estimator of the first packages is one of
# scikit-learn's, too: the most specific class decides.
_FLAVORS = {
    "lightgbm": "lightgbm",
    "xgboost": "xgboost",
    "catboost": "catboost",
    "keras": "keras",
    "tensorflow": "keras",
    "torch": "pytorch",
    "statsmodels": "statsmodels",
    "sklearn": "sklearn",
    "mlflow": "pyfunc",
}
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


def flavor_of(model: Any) -> str:
    """The module of MLflow that logs and loads models like this one.

    Raises:
        TrainingRunError: there is none that is known here.
    """
    for cls in type(model).__mro__:
        if name := _FLAVORS.get(cls.__module__.partition(".")[0]):
            return name
    raise TrainingRunError(
        f"no flavour of MLflow is known for {_name(type(model))}; known are those of {', '.join(_FLAVORS)}. Log it "
        "with mlflow.<flavor>.log_model, or wrap it into an mlflow.pyfunc.PythonModel."
    )


def model_digest(folder: Path) -> str:
    """SHA-256 of the files that make up a model; what MLflow writes around them carries ids and times."""
    around = {"MLmodel", "registered_model_meta", "conda.yaml", "python_env.yaml", "requirements.txt"}
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in around):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


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
    options = {**_serialization(model, flavor, serialization, trust, native), **native}
    function = native.get("pyfunc_predict_fn", "predict")
    rows = native.get("input_example", _rows(example, _EXAMPLE_ROWS))
    if options.get("serialization_format") == "pt2" and len(rows) == 1:
        rows = _plain(rows).repeat(2, axis=0)  # exported for one row, the network would take one row ever after
    if not {"pip_requirements", "conda_env", "extra_pip_requirements"} & native.keys():
        options["pip_requirements"] = requirements(model, example, options)
    module = extra(f"mlflow.{flavor}", extra="mlflow")
    answers = None
    with _evaluating(model, flavor):
        if predict := _predict_function(model, flavor, function):
            answers = predict(rows)
            if "signature" not in native:
                output = predict(_rows(example, _PREDICTED_ROWS))
                options["signature"] = extra("mlflow.models").infer_signature(_plain(example), _plain(output))
        given = () if flavor == "pyfunc" else (model,)
        if flavor == "pyfunc":
            options["python_model"] = model
        try:
            info = module.log_model(*given, **{"name": name, "input_example": _plain(rows), **options})
        except Exception as error:
            if options.get("serialization_format") != "pt2":
                raise
            raise TrainingRunError(
                f"PyTorch cannot export {_name(type(model))} as a graph: {type(error).__name__}: {str(error)[:500]}\n"
                'Mend what it names, or write log_model(…, serialization="pickle"): then whoever can write the file '
                "can run code where it is loaded."
            ) from error
    client = extra("mlflow").MlflowClient()
    tags = {FORMAT: str(_format_of(info, options))}
    if verify:
        folder = Path(extra("mlflow.artifacts").download_artifacts(artifact_uri=info.model_uri))
        tags[DIGEST] = model_digest(folder)
        try:
            _verify(folder, info, flavor, rows, answers, function)
        except Exception:
            client.finalize_logged_model(info.model_id, "FAILED")
            raise
    client.set_logged_model_tags(info.model_id, tags)
    return info


def _serialization(
    model: Any, flavor: str, serialization: str, trust: Sequence[str], native: dict[str, Any]
) -> dict[str, Any]:
    """Options of MLflow that store the model as asked.

    Raises:
        TrainingRunError: it cannot be stored safely.
    """
    if serialization not in ("safe", "pickle"):
        raise TrainingRunError(f"serialization is {serialization!r}; it is 'safe' or 'pickle'.")
    pickle = serialization == "pickle"
    is_booster = flavor == "lightgbm" and type(model).__name__ == "Booster"
    if "serialization_format" in native or is_booster or flavor in ("xgboost", "catboost", "keras"):
        return {}
    if flavor in ("statsmodels", "pyfunc"):
        if not pickle:
            raise TrainingRunError(
                f"MLflow stores models of {flavor} as pickles and in no other way, and a pickle runs whatever was put "
                'into it. Write log_model(…, serialization="pickle") if you trust everybody who can write to the '
                "artifact store."
            )
        return {}
    if flavor == "pytorch":
        return {"serialization_format": "pickle" if pickle else "pt2"}
    if pickle:
        return {"serialization_format": "cloudpickle"}
    skops = extra("skops.io", extra="mlflow")
    try:
        types = skops.get_untrusted_types(data=skops.dumps(model))
    except Exception as error:
        raise TrainingRunError(
            f"{_name(type(model))} cannot be stored as data: {type(error).__name__}: {str(error)[:300]}\nskops stores "
            "objects of classes and functions that a module defines at its top level. Move lambdas and local classes "
            'there, or write log_model(…, serialization="pickle").'
        ) from error
    foreign = untrusted(types, [*trust, *native.get("skops_trusted_types", ())])
    if foreign:
        local = [name for name in foreign if name.startswith("__main__.") or "<" in name]
        raise TrainingRunError(
            f"{_name(type(model))} holds {', '.join(foreign)}, which is not trusted to be only data. "
            + (
                f"Define {', '.join(local)} by name in a module that can be imported where the model is loaded. "
                if local
                else f"If you trust that, write log_model(…, trust={foreign}), and have it importable where the model "
                "is loaded: installed, or below code_paths=[…]. "
            )
            + 'Or write serialization="pickle": then whoever can write the file can run code where it is loaded.'
        )
    return {"serialization_format": "skops", "skops_trusted_types": types or None}


def _format_of(info: "ModelInfo", options: dict[str, Any]) -> StoredFormat:
    files = (EXPORTED_PROGRAM,) if options.get("serialization_format") == "pt2" else ()
    return stored_format(info.flavors, files=files)


def _rows(example: Any, count: int) -> Any:
    return (
        example if isinstance(example, dict | str | bytes) or not hasattr(example, "__getitem__") else example[:count]
    )


def _plain(value: Any) -> Any:
    """A tensor as an array: MLflow's signatures know none of torch's types."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def _predict_function(model: Any, flavor: str, name: str) -> Callable[[Any], Any] | None:
    """What answers for a row, where the model in memory is called with what the stored one will be called with."""
    if flavor == "pytorch":
        torch = importlib.import_module("torch")
        return lambda rows: model(torch.as_tensor(_plain(rows)))
    # A pyfunc and a bare booster are called through MLflow's wrapper, which then finds the signature, too.
    if flavor == "pyfunc" or type(model).__name__ == "Booster":
        return None
    return getattr(model, name, None) or getattr(model, "transform", None)


@contextmanager
def _evaluating(model: Any, flavor: str) -> Iterator[None]:
    """A network predicts, and is exported, in evaluation mode on the CPU; afterwards it is as it was."""
    if flavor != "pytorch":
        yield
        return
    torch = importlib.import_module("torch")
    training, device = model.training, next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval().cpu()
    try:
        with torch.no_grad():
            yield
    finally:
        model.to(device).train(training)


def _verify(folder: Path, info: "ModelInfo", flavor: str, rows: Any, answers: Any, predict: str) -> None:
    """Load the model, ask it for the rows that are kept with it, and compare.

    Raises:
        TrainingRunError: it cannot be loaded, or answers differently.
    """
    try:
        if "python_function" in info.flavors:
            stored = extra("mlflow.pyfunc").load_model(str(folder))
            # As a server gets it: the example went through JSON.
            said = stored.predict(rows if stored.input_example is None else stored.input_example)
        else:
            loaded = extra(f"mlflow.{flavor}").load_model(str(folder))
            function = _predict_function(loaded, flavor, predict)
            said = function(rows) if function else None
    except Exception as error:
        raise TrainingRunError(
            f"the model that was just stored cannot be used: {type(error).__name__}: {str(error)[:500]}\nIs `example` "
            "what the model is called with? MLflow calls models with plain columns, text instead of pandas categories: "
            "encode categories in a pipeline. A model that is never served by MLflow can do with verify=False."
        ) from error
    if answers is not None and not _equal(_plain(answers), _plain(said)):
        raise TrainingRunError(
            f"the stored model answers differently from the one in memory for the same rows: {str(said)[:200]} instead "
            f"of {str(answers)[:200]}. Does it read more than its input, such as the index, categories or the clock?"
        )


def _equal(one: Any, other: Any) -> bool:
    numpy, pandas = extra("numpy", extra="mlflow"), extra("pandas", extra="mlflow")
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))

    def frame(value: Any) -> Any:
        value = value.toarray() if hasattr(value, "toarray") else value
        if not isinstance(value, pandas.DataFrame):
            value = numpy.atleast_1d(numpy.asarray(value))
            value = value.reshape(len(value), -1)
        return pandas.DataFrame(value)

    one, other = frame(one), frame(other)
    if one.shape != other.shape:
        return False
    for (_, left), (_, right) in zip(one.items(), other.items(), strict=True):
        try:
            # Networks compute in single precision.
            same = numpy.allclose(left.astype(float), right.astype(float), rtol=1e-4, atol=1e-6, equal_nan=True)
        except (TypeError, ValueError):
            missing = left.isna().to_numpy() & right.isna().to_numpy()
            same = missing | (left.to_numpy(object) == right.to_numpy(object))
        if not numpy.all(same):
            return False
    return True


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
