"""Loads a stored model after checking its format, and whether loading may run code."""

import shutil
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster_mlops.core.environment import environment
from dagster_mlops.core.extras import extra
from dagster_mlops.core.model_code import ModelCode
from dagster_mlops.core.model_digest import model_digest
from dagster_mlops.core.model_formats import StoredFormat, stored_format
from dagster_mlops.core.model_inputs import fitting_first
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

    `trust` names packages or types of your own that a skops file may name. A model that brings code runs that code, and
    no module of the same name that another model or this process has imported.

    Raises:
        ModelVersionError: its files were changed; it is a format that may run code while it is loaded and
            `allow_pickle` is not set; or what `fetch` raises.
    """
    folder = Path(tempfile.mkdtemp(prefix="dagster-mlops-model-"))
    try:
        stored = fetch(folder)
        digest = model_digest(stored.folder)  # before Python writes bytecode there
        _unchanged(stored, digest)
        name = f"{stored.version.name}/{stored.version.version}"
        form = stored_format(stored.flavors, files=named_types(stored.folder), trust=trust)
        if form.runs_code and not allow_pickle:
            raise ModelVersionError(
                f"model version {name} is stored as {form}: {form.runs_code}. Loading it may run code of anyone "
                "with write access to the artifact store. If you trust them, set allow_pickle. To avoid this, "
                "log the model with dagster_mlops.mlflow.models.log_model."
            )
        flavor = "pyfunc" if pyfunc else next((flavor for flavor in _NATIVE if flavor in stored.flavors), "pyfunc")
        # An exported graph may hold pickles, which MLflow refuses with this setting. It would also refuse every skops
        # file, because it takes the trusted types from the model itself; what the file names was judged above.
        strict = {} if allow_pickle or form.name == "skops" else {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
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


def named_types(folder: Path) -> dict[str, list[str]]:
    """The files of a model, by path below its folder, with the types that skops would not load by itself.

    Raises:
        ModelVersionError: a file calls itself skops and is not, so that no one can tell what it names.
    """
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    try:
        return {
            name: extra("skops.io").get_untrusted_types(file=file) if file.suffix == ".skops" else []
            for name, file in files.items()
        }
    except (ValueError, LookupError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise ModelVersionError(
            f"a skops file of the model cannot be read: {str(error)[:300]}. It was changed."
        ) from error


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


def _unchanged(stored: StoredModel, digest: str) -> None:
    """Compare with the hash in the record that asked for the model, and with the registry's.

    Raises:
        ModelVersionError: one of them differs.
    """
    for witness, expected in (("its record", stored.version.sha256), ("the registry", stored.sha256)):
        if expected not in ("", digest):
            raise ModelVersionError(
                f"the files of model version {stored.version.name}/{stored.version.version} have the hash "
                f"{digest[:16]}…, but {witness} says that {expected[:16]}… was stored: someone changed them. Nothing "
                "was loaded. Restore them, or train a new version."
            )
