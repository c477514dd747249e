"""The packages that a model consists of, found quickly and without loading it in another process."""

import os
import sys
from functools import lru_cache
from importlib import metadata as distributions
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.extras import extra
from dagster_mlops.mlflow import upstream

_QUICK = ("sklearn", "xgboost", "lightgbm", "catboost", "statsmodels")
_LARGE = 500_000_000  # bytes: a second copy in memory may be too much


def of_stored(path: str, flavor: str) -> list[str] | None:
    """The requirements of a model that MLflow is storing in a folder; None if only MLflow can tell."""
    files = [file for file in Path(path).rglob("*") if file.is_file()] if Path(path).is_dir() else [Path(path)]
    if flavor not in _QUICK or sum(file.stat().st_size for file in files if file.is_file()) > _LARGE:
        return None
    try:
        # As MLflow's other process does, by the function of each flavour; this process has just written the file.
        model = upstream.load_stored(flavor, path)
    except Exception:  # noqa: BLE001 - MLflow's own way may succeed
        return None
    return requirements(model, None, {}) or None


def requirements(model: Any, example: Any, options: dict[str, Any]) -> list[str]:
    """The installed versions of the packages that a model consists of, as requirements."""
    modules = _modules_of(model)
    modules |= {type(example).__module__} | {cls.__module__ for cls in type(model).__mro__}
    stored_as = options.get("serialization_format")
    if stored_as in ("skops", "cloudpickle"):
        modules.add(stored_as)
    if any(module.partition(".")[0] == "keras" for module in modules):
        modules.add(extra("keras", extra="mlflow").backend.backend())  # which no class may show
    roots = {module.partition(".")[0] for module in modules} - {"__main__", "mlflow", *sys.stdlib_module_names}
    pins = set()
    # Cython keeps the shared part of its modules in one named _cython_<version>.
    for root in sorted(root for root in roots if not root.startswith("_cython")):
        if pin := _pin(root):
            pins.add(pin)
        else:
            dg.get_dagster_logger().warning(
                f"The model needs {root!r}, which comes from no package index: give log_model code_paths=[…], or have "
                "it installed where the model is loaded."
            )
    return sorted(pins)


@lru_cache
def _pin(module: str) -> str:
    """The requirement of a top-level module's package; empty if it comes from no index."""
    for name in _distributions().get(module, ())[:1]:
        distribution = distributions.distribution(name)
        # A package from a folder or a repository is on no index. There, 2.4+cpu is 2.4.
        if not distribution.read_text("direct_url.json"):
            return f"{name}=={distribution.version.partition('+')[0]}"
    return ""


@lru_cache
def _distributions() -> dict[str, list[str]]:
    return {module: sorted(set(names)) for module, names in distributions.packages_distributions().items()}


def _modules_of(model: Any) -> set[str]:
    """The modules of the classes and functions in a model: those that its pickle would name."""
    cloudpickle = extra("cloudpickle", extra="mlflow")
    modules: set[str] = set()

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            modules.add(getattr(type(obj), "__module__", None) or "builtins")
            if isinstance(obj, type) or callable(obj):
                modules.add(getattr(obj, "__module__", None) or "builtins")
            return super().reducer_override(obj)

    try:
        with open(os.devnull, "wb") as nowhere:
            # With the callback, arrays are not copied.
            Pickler(nowhere, protocol=5, buffer_callback=lambda _: None).dump(model)
    except Exception:  # noqa: BLE001 — a model need not be picklable, and may raise any error
        return set()
    return modules
