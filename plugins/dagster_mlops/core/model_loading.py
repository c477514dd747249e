"""Loads a stored model after checking its format, and whether loading may run code."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster_mlops.core.environment import environment
from dagster_mlops.core.extras import extra
from dagster_mlops.core.model_code import ModelCode
from dagster_mlops.core.model_formats import StoredFormat
from dagster_mlops.core.model_inputs import fitting_first
from dagster_mlops.core.model_judgement import judge_model
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.provenance import NAMESPACE, ModelVersion
from dagster_mlops.tools import StoredModel

FORMAT, DIGEST = f"{NAMESPACE}.format", f"{NAMESPACE}.sha256"
"""Tags of a stored model: its format, and the hash of its files."""
REGISTERED_DIGEST = f"{NAMESPACE}.registered_sha256"
"""Tag of a model that was logged without such a hash: that of its files when it was registered, for `reproduce`."""

# In this order: a model of the first has the second as well, because it follows its interface.
_NATIVE = ("lightgbm", "xgboost", "catboost", "keras", "pytorch", "statsmodels", "sklearn")


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, and what it was loaded from."""

    model: Any
    record: ModelVersion
    format: StoredFormat
    sha256: str

    def to_metadata(self) -> dict[str, str]:
        """Version, format and hash of the model, for people."""
        return {
            "mlflow/loaded": f"{self.record.name}/{self.record.version}",
            "mlflow/format": str(self.format),
            "mlflow/sha256": self.sha256,
        }


def load_stored(
    fetch: Callable[[Path], StoredModel],
    *,
    pyfunc: bool = False,
    allow_pickle: bool = False,
    trust: Sequence[str] = (),
) -> LoadedModel:
    """The model that `fetch` copies below a folder: the object that was logged, or MLflow's own wrapper with `pyfunc`.

    The one way to a model: fetch, compare its hash, judge its format, load.

    `trust` names packages or types of your own that a skops file may name, beside those of the resource that fetches. A
    model that brings code runs that code, and no module of the same name that another model or this process has
    imported.

    Raises:
        ModelVersionError: its files were changed; it is a format that may run code while it is loaded and
            `allow_pickle` is not set, here or on the resource that fetches; or what `fetch` raises.
    """
    folder = Path(tempfile.mkdtemp(prefix="dagster-mlops-model-"))
    try:
        stored = fetch(folder)
        name = f"{stored.version.name}/{stored.version.version}"
        allow_pickle, trust = allow_pickle or stored.allow_pickle, [*trust, *stored.trust]
        hashes = (stored.version.sha256, stored.sha256)
        digest, form, strict = judge_model(name, stored.folder, expected=hashes, allow_pickle=allow_pickle, trust=trust)
        flavor = "pyfunc" if pyfunc else next((flavor for flavor in _NATIVE if flavor in stored.flavors), "pyfunc")
        code = ModelCode.of(stored.folder, stored.flavors)
        try:
            with environment(**strict), code.active():
                model = extra(f"mlflow.{flavor}").load_model(str(stored.folder))
        except extra("mlflow.exceptions").MlflowException as error:
            if not strict or "PICKLE" not in str(error):
                raise
            raise ModelVersionError(
                f"model version {name} is stored as {form}, but MLflow cannot tell that it is only data: "
                f"{str(error)[:500]}\nIf you trust everyone with write access to the artifact store, set allow_pickle."
            ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if flavor == "pyfunc":
        model.__class__ = _answering(type(model), code)
    # A pyfunc may go on reading files beside it.
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return LoadedModel(model, stored.version, form, digest)


def _answering(kind: Any, code: ModelCode) -> Any:
    """MLflow's class of models, whose predictions run the model's own code, on frames in the types of its signature.

    A class, because a function set on the model itself would refer to the model: it and its files would then outlive
    their last use until Python looks for such circles.
    """

    class Answering(kind):
        def predict(self, *arguments: Any, **options: Any) -> Any:
            return code.calling(fitting_first(super().predict, self))(*arguments, **options)

    Answering.__name__, Answering.__qualname__, Answering.__doc__ = kind.__name__, kind.__qualname__, kind.__doc__
    return Answering
