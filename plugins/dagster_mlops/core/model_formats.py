"""The format of a logged model: data only, or one that may run code when it is loaded."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from dagster_mlops.core.trusted_types import TRUSTED_TYPES

EXPORTED_PROGRAM, _TORCH_PICKLE = "data/model.pt2", "data/model.pth"
KERAS_FILE = "data/model.keras"
_DATA_ONLY = {"xgboost": "XGBoost", "catboost": "CatBoost", "keras": "Keras"}
_KNOWN = ("sklearn", "lightgbm", *_DATA_ONLY, "pytorch", "statsmodels")
_DATA_FIELDS = {"sklearn": "pickled_model", "pytorch": "model_data"}  # "data" in the others
_PICKLE = "a pickle runs whatever was put into it"
_Flavors = Mapping[str, Mapping[str, Any]]
_Files = Mapping[str, Collection[str]]


@dataclass(frozen=True)
class StoredFormat:
    """The format of a logged model. `runs_code` says why loading it may run code; empty when it cannot.

    `foreign` are the names in it that would have to be trusted.

    >>> str(StoredFormat("cloudpickle", "a pickle runs whatever was put into it"))
    'cloudpickle'
    """

    name: str
    runs_code: str = ""
    foreign: tuple[str, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return self.name


def untrusted(types: Iterable[str], trust: Sequence[str] = ()) -> list[str]:
    """Those of the names in a model's file that neither the allow-list nor `trust` covers.

    `trust` names types, or packages with everything in them.

    >>> untrusted(["sklearn.tree._tree.Tree", "os.system", "numpy.load", "shop.features.Clip"])
    ['numpy.load', 'os.system', 'shop.features.Clip']
    >>> untrusted(["shop.features.Clip"], trust=["shop"])
    []
    """
    packages = tuple(f"{entry}." for entry in trust)
    return sorted(name for name in {*types} - TRUSTED_TYPES if name not in trust and not name.startswith(packages))


def stored_format(flavors: _Flavors, *, files: _Files, trust: Sequence[str] = ()) -> StoredFormat:
    """The format of a model whose MLmodel file has these flavours.

    `files` are those of its folder, each with the foreign names in it (:func:`.model_contents.foreign_names`): they are
    judged by what is in them, since the list in the MLmodel file is the writer's own (mlflow/mlflow#25686).

    >>> flavors = {"sklearn": {"serialization_format": "skops", "pickled_model": "model.skops"}}
    >>> stored_format(flavors, files={"model.skops": ["numpy.dtype"]})
    StoredFormat(name='skops', runs_code='')
    >>> stored_format(flavors, files={"model.skops": ["os.system"]}).runs_code
    'it names os.system, which may be more than data'
    """
    form = _format(flavors, files, trust)
    # MLflow puts a model's own code first on sys.path when it loads the model.
    if any(flavor.get("code") for flavor in flavors.values()) and not form.runs_code:
        return StoredFormat(f"{form} with code", "it brings modules of its own (code_paths)")
    return form


def _format(flavors: _Flavors, files: _Files, trust: Sequence[str]) -> StoredFormat:
    native, python = [name for name in flavors if name in _KNOWN], flavors.get("python_function")
    if len(native) > 1:  # which MLflow never writes
        return StoredFormat(" and ".join(native), "it says to be of several flavours")
    if not native and python is None:
        return StoredFormat("unknown", f"this library does not know the flavours {', '.join(flavors)}")
    if not native:
        code = "model_code_path" in flavors["python_function"]
        return StoredFormat("Python code", "it is a Python file") if code else StoredFormat("cloudpickle", _PICKLE)
    [name] = native
    form, named = _native(name, flavors[name], files, trust), _data_of(name, flavors[name])
    if form.runs_code:
        return form
    if _leads_out(named):  # to what the hash of the model does not cover
        return StoredFormat(f"{form} elsewhere", f"its data, {named}, is outside of its folder")
    if python is None:
        return form
    loader = str(python.get("loader_module", ""))
    if loader != f"mlflow.{name}":
        return StoredFormat(f"{form} with a loader", f"{loader or 'a loader without a name'} loads it")
    loaded = [str(python[key]) for key in ("data", "model_path") if python.get(key)]
    # MLflow's loaders trust the MLmodel file beside the data, and take data without one for a pickle.
    if {*loaded} - {named} or any(file.endswith("/MLmodel") for file in files):
        return StoredFormat(f"{form} elsewhere", f"its data, {loaded or named}, is not what its flavour {name} names")
    return form


def _data_of(name: str, conf: Mapping[str, Any]) -> str:
    """The file or folder beside the MLmodel file from which MLflow's flavour `name` loads."""
    return str(conf.get(_DATA_FIELDS.get(name, "data")) or "")


def _leads_out(name: str) -> bool:
    return PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts


def _by_content(form: str, path: str, suffix: str, files: _Files, trust: Sequence[str]) -> StoredFormat:
    """The format of a file that names what loading it calls. Only one that lies in the folder was looked into."""
    if not path.endswith(suffix) or path not in files:
        return StoredFormat(
            f"{form} elsewhere", f"its data, {path or 'without a name'}, is not a {suffix} file of its folder"
        )
    return _naming(form, untrusted(set().union(*files.values()), trust))


def _naming(form: str, foreign: Sequence[str]) -> StoredFormat:
    return StoredFormat(
        form, f"it names {', '.join(foreign)}, which may be more than data" if foreign else "", tuple(foreign)
    )


def _native(name: str, conf: Mapping[str, Any], files: _Files, trust: Sequence[str]) -> StoredFormat:
    if name == "lightgbm" and conf.get("model_class") == "lightgbm.basic.Booster":
        return StoredFormat("LightGBM")
    if name in ("sklearn", "lightgbm"):
        how = str(conf.get("serialization_format", "pickle"))
        if how != "skops":
            return StoredFormat(how, _PICKLE)
        return _by_content("skops", _data_of(name, conf), ".skops", files, trust)
    if name in _DATA_ONLY:
        if conf.get("save_exported_model"):
            return StoredFormat("TensorFlow", "a graph of TensorFlow may read and write files")
        if name == "keras":
            return _by_content("Keras", f"{_data_of(name, conf)}/model.keras", ".keras", files, trust)
        return _naming(_DATA_ONLY[name], untrusted([str(conf["model_class"])] if "model_class" in conf else (), trust))
    if name == "pytorch":
        # MLflow writes the format nowhere down: it loads model.pth where there is one.
        graph = EXPORTED_PROGRAM in files and _TORCH_PICKLE not in files and conf.get("model_data", "data") == "data"
        if not graph:
            return StoredFormat("torch pickle", _PICKLE)
        return _by_content("pt2", EXPORTED_PROGRAM, ".pt2", files, trust)
    return StoredFormat("pickle", _PICKLE)
