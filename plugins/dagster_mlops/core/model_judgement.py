"""The judgement on a stored model before anything loads it: its files are those on record, and are data or allowed."""

import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from dagster_mlops.core.model_contents import foreign_names
from dagster_mlops.core.model_digest import changed, model_digest
from dagster_mlops.core.model_formats import StoredFormat, stored_format
from dagster_mlops.errors import ModelVersionError


class Judgement(NamedTuple):
    """The hash and the format of a model that may be loaded, and the variables that MLflow needs while it loads it.

    An exported graph may hold pickles, which MLflow finds and refuses with this setting. It would also refuse every
    skops file, because it takes the trusted types from the model itself; what the file names is judged here.
    """

    sha256: str
    format: StoredFormat
    environment: Mapping[str, str]


def judge_model(
    name: str, folder: Path, *, expected: Collection[str], allow_pickle: bool, trust: Sequence[str] = ()
) -> Judgement:
    """Judge the model `name` in an MLmodel folder, before Python writes bytecode there.

    Args:
        name: How errors call it.
        folder: It holds the MLmodel file.
        expected: Hashes that the model must have, as its record and the registry say; empty ones say nothing.
        allow_pickle: Whether loading it may run code.
        trust: Packages, types or operators that a file may name, beside the enumerated ones.

    Raises:
        ModelVersionError: it has another hash, or loading it may run code and that is not allowed.
    """
    sha256 = model_digest(folder)
    for hash_on_record in expected:
        if problem := changed(sha256, hash_on_record):
            raise ModelVersionError(f"model {name}: {problem} Nothing was loaded.")
    flavors = (yaml.safe_load((folder / "MLmodel").read_text()) or {}).get("flavors") or {}
    form = stored_format(flavors, files=named_types(folder), trust=trust)
    if form.runs_code and not allow_pickle:
        hint = " If you trust what it names, list that in trust." if form.foreign else ""
        raise ModelVersionError(
            f"model version {name} is stored as {form}: {form.runs_code}. Loading it may run code of anyone with write "
            f"access to the artifact store.{hint} If you trust them, set allow_pickle on the resource or the call "
            "that loads it. To avoid this, log the model with dagster_mlops.mlflow.models.log_model."
        )
    strict = {} if allow_pickle or form.name == "skops" else {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    return Judgement(sha256, form, strict)


def named_types(folder: Path) -> dict[str, list[str]]:
    """The files of a model, by path below its folder, with the foreign names in each.

    Raises:
        ModelVersionError: a file is not what its name says, so that no one can tell what it names.
    """
    names: dict[str, list[str]] = {}
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        try:
            names[file.relative_to(folder).as_posix()] = foreign_names(file)
        except (ValueError, LookupError, TypeError, OSError, RecursionError, zipfile.BadZipFile) as error:
            raise ModelVersionError(
                f"a {file.suffix[1:]} file of the model cannot be read: {str(error)[:300]}. It was changed."
            ) from error
    return names
