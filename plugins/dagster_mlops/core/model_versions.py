"""Model versions of any registry: names, the one that an asset made last, the holder of an alias."""

import re

import dagster as dg

from dagster_mlops.core.asset_records import misspelt, upstream_records
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.provenance import Commit, Dataset, ModelVersion
from dagster_mlops.tools import HoldsModels

_ALIAS, _RESERVED = re.compile(r"[\w-]+"), re.compile(r"latest|v\d+", re.IGNORECASE)


def parse_version(text: str) -> tuple[str, str]:
    """The name of a model, and ``@alias``, a version, or an empty text for the newest.

    >>> parse_version("models:/delay@champion"), parse_version("flights/delay/3"), parse_version("delay")
    (('delay', '@champion'), ('flights/delay', '3'), ('delay', ''))
    """
    text = text.removeprefix("models:/")
    name, at, alias = text.rpartition("@")
    if at:
        return name, f"@{alias}"
    name, slash, version = text.rpartition("/")
    return (name, version) if slash else (text, "")


def registry_kind(registry: str) -> str:
    """The tool of a model registry by its resource key, of which there may be one for each environment.

    >>> registry_kind("mlflow_prod"), registry_kind("gto")
    ('mlflow', 'gto')
    """
    return "mlflow" if registry.startswith("mlflow") else registry


def refuse_model(name: str, registry: str) -> None:
    """Refuse a name of a registered model that no registry has, or that MLflow refuses only after the training.

    Raises:
        DagsterInvalidDefinitionError: it is one.
    """
    if not isinstance(name, str) or not name.strip():
        raise dg.DagsterInvalidDefinitionError(
            f"registered_model_name={name!r} is empty, or not a text. Name the registered model."
        )
    if not isinstance(registry, str) or not registry.strip():
        raise dg.DagsterInvalidDefinitionError(
            f"{registry!r} is not the key of a resource that holds models, such as 'mlflow'."
        )
    if registry_kind(registry) == "mlflow" and set(name) & set("/:"):
        raise dg.DagsterInvalidDefinitionError(f"registered_model_name={name!r}: MLflow takes no '/' and no ':' there.")


def refuse_alias(alias: str, registry: str, argument: str) -> None:
    """Refuse an empty alias, and one that MLflow refuses only when it is written, after the training, or resolves.

    Raises:
        DagsterInvalidDefinitionError: it is one, and the key `registry` is MLflow's by its name, or it is empty.
    """
    if not isinstance(alias, str) or not alias.strip():
        raise dg.DagsterInvalidDefinitionError(
            f"{argument}={alias!r} is empty, or not a text. Name the alias, such as 'champion'."
        )
    is_fine = _ALIAS.fullmatch(alias) and not _RESERVED.fullmatch(alias) and len(alias) <= 255
    if is_fine or registry_kind(registry) != "mlflow":
        return
    raise dg.DagsterInvalidDefinitionError(
        f"{argument}={alias!r} is not an alias that MLflow accepts: it takes letters, digits, '_' and '-', and means "
        "version 1 by 'v1' and the newest version by 'latest'. Name it for its use, such as 'champion'."
    )


def made_by(context: dg.AssetExecutionContext, asset: dg.AssetKey, name: str = "") -> ModelVersion:
    """The version that an upstream asset made last; of the registered model `name`, if that is given.

    Raises:
        ModelVersionError: it has made none.
    """
    records = upstream_records(context)
    makers = ("", asset.to_user_string())  # who made a version that was reported by hand need not be known
    versions = [
        record
        for record in records
        if isinstance(record, ModelVersion) and (record.name == name if name else record.dagster_asset in makers)
    ]
    if not versions:
        with_name = f" with registered_model_name={name!r}" if name else ""
        kinds = ", ".join(sorted({record.role for record in records})) or "no record"
        raise ModelVersionError(
            f"{context.assets_def.key.to_user_string()} found no version{f' of {name!r}' if name else ''} on "
            f"{asset.to_user_string()}; there is {kinds}. "
            + (misspelt(context, asset) or f"Materialize a training_asset{with_name} there first.")
        )
    return versions[-1]


def version_of(registry: HoldsModels, record: ModelVersion) -> ModelVersion:
    """The version of a registry that a record in Dagster's event log is about.

    Raises:
        ModelVersionError: it is gone, or its number is that of another version: of another registry, or of a new model
            with the name of one that was deleted, which counts from 1 again.
    """
    version = registry.version(record.name, record.version)
    for name, recorded, current in zip(_IDENTITY, _identities(record), _identities(version), strict=True):
        if recorded and current and recorded.isdisjoint(current):
            raise ModelVersionError(
                f"version {version.version} of {version.name!r} in {version.ref.at} is not the one that was made: its "
                f"{name} is {min(current)[:40]}, and was {min(recorded)[:40]} in {record.ref.at}. The registry is "
                "another one, or the version was replaced. Correct the address of the registry, or make a version anew."
            )
    return version


_IDENTITY = ("run", "hash of the files", "commit")


def _identities(version: ModelVersion) -> tuple[set[str], ...]:
    commits = {ref.id for ref in version.upstream if ref.role == Commit.role}
    return {version.run_id} - {""}, {version.sha256} - {""}, commits


def content_hashes(context: dg.AssetExecutionContext, rows: dg.AssetKey) -> list[str]:
    """The content hashes on record of the dataset that an upstream asset is, one for each partition that is read."""
    records = [record for record in upstream_records(context) if isinstance(record, Dataset)]
    return [record.md5 for record in records if record.dagster_asset == rows.to_user_string()]


def holder(registry: HoldsModels, name: str, alias: str) -> ModelVersion | None:
    """The version that holds an alias."""
    try:
        return registry.version(name, f"@{alias}")
    except ModelVersionError:
        return None
