"""Copies of versions in another registry, such as from development to production, with the evidence of promotion."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.asset_records import dagster_facts
from dagster_mlops.core.gates import require_gates
from dagster_mlops.core.metadata import link
from dagster_mlops.core.model_digest import changed, model_digest
from dagster_mlops.core.model_versions import made_by, refuse_alias, refuse_model, registry_kind, version_of
from dagster_mlops.core.options import asset_with
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.errors import ModelVersionError, ToolError
from dagster_mlops.promotion.rules.source_promotion import STATEMENT_HASH
from dagster_mlops.provenance import ModelVersion, TrainingRun
from dagster_mlops.tools import HoldsModels, ModelCopy, ModelRegistry, TakesModels


def model_copy_asset(
    *,
    name: str,
    registered_model_name: str,
    source: str,
    registry: str = "mlflow",
    to_name: str | None = None,
    alias: str = "champion",
    candidate: AssetLike | None = None,
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset that is a version of another registry, copied into this one with its record and its evidence.

        copy = model_copy_asset(
            name="delay_copy", registered_model_name="delay", source="mlflow_dev", registry="mlflow_prod"
        )
        champion = promotion_asset(
            candidate=copy, registered_model_name="delay", registry="mlflow_prod", rules=[SourcePromotion()]
        )

    The copy is a candidate here: no alias moves. The files are hashed before and after. The record names the version in
    the source as its origin, so that a trace goes on to the training and its data. Metrics come along, and so do the
    entries of the source's history that say why the version holds `alias` there, which :class:`SourcePromotion` judges.
    The same version with the same files is copied once; after a kill, the next run completes it.

    Args:
        name: Name of the asset.
        registered_model_name: The model in the source.
        source: Key of the resource that holds the models in the source.
        registry: Key of the resource that gets the copy; it may be the source, for a model of another name.
        to_name: The model that gets the copy; by default, named as in the source.
        alias: Alias of the version in the source, and of its evidence.
        candidate: Asset that made the version, in place of the one that holds `alias`. Its blocking checks must hold.
        asset_options: Whatever else :func:`dagster.asset` takes.
    """
    target = registered_model_name if to_name is None else to_name
    refuse_model(registered_model_name, source)
    refuse_model(target, registry)
    refuse_alias(alias, source, "alias")
    if (source, registered_model_name) == (registry, target):
        raise dg.DagsterInvalidDefinitionError(
            f"model_copy_asset copies {target!r} of {registry!r} onto itself. Name another registry, or to_name=."
        )
    guards = [asset_key(candidate)] if candidate is not None else []

    def copy(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from dagster_mlops.promotion.carried import (  # for steps, not for code locations
            FILE,
            statement_hash,
            statement_of,
        )

        origin = capable_resource(context, source, ModelRegistry)
        destination = capable_resource(context, registry, ModelRegistry)
        origin_record = made_by(context, guards[0], registered_model_name) if guards else None
        if origin_record:
            is_maker = origin_record.dagster_asset == guards[0].to_user_string()
            require_gates(context, guards, {guards[0]: origin_record.dagster_partition if is_maker else ""})
        with TemporaryDirectory(prefix="dagster-mlops-") as scratch:
            # One after the other: a tool may have one active server in a process.
            with origin.models() as models:
                version = (
                    version_of(models, origin_record)
                    if origin_record
                    else models.version(registered_model_name, f"@{alias}")
                )
                statement = statement_of(models, version, alias)
                folder, sha256 = _files(models, version, Path(scratch))
                metrics, training = models.metrics(version), _training(models, version)
            record = ModelVersion(
                name=target,
                version="0",
                tracking_uri="",
                datasets=version.datasets,
                metrics=version.metrics,
                sha256=sha256,
                upstream=(version.ref,),
                tool_facts={"copy_of": version.ref.id, "authors": _authors(version)},
                **dagster_facts(context),
            )
            with destination.models() as models:
                if not isinstance(models, TakesModels):
                    raise ToolError(
                        f"the registry {models.tool!r} takes no files of a version from elsewhere (in GTO, a version "
                        "is a commit of its repository). Copy into a registry that does, such as MLflow's."
                    )
                content = statement.to_bytes()
                new = models.take(ModelCopy(record, folder, metrics, {FILE: content}, training))
                tool, url = models.tool, models.url(new)
        context.log.info(
            f"{target}/{new.version} is {version.ref.id}. {statement.missing or 'Its statement came along.'}"
        )
        facts = {
            f"{tool}/{STATEMENT_HASH}": statement_hash(content),
            f"{tool}/statement": statement.missing or f"{len(statement.texts)} entries about {alias}",
            **link(f"{tool}/version_url", url),
        }
        return dg.MaterializeResult(
            metadata=new.to_metadata(facts), data_version=dg.DataVersion(f"{target}/{new.version}")
        )

    return asset_with(
        asset_options,
        name=name,
        description=f"Copy of `{registered_model_name}` from `{source}` in `{registry}`, as `{target}`.",
        kinds=[registry_kind(registry)],
        required_resource_keys={source, registry},
        deps=guards,
    )(copy)


def _files(models: HoldsModels, version: ModelVersion, folder: Path) -> tuple[Path, str]:
    """The files of a version, and their hash, which is that on record."""
    stored = models.fetch(version, folder)
    sha256 = model_digest(stored.folder)
    for expected in (version.sha256, stored.sha256):
        if problem := changed(sha256, expected):
            raise ModelVersionError(f"{version.name}/{version.version} is not copied: {problem}")
    return stored.folder, sha256


def _training(models: HoldsModels, version: ModelVersion) -> TrainingRun | None:
    from dagster_mlops.evaluation.model_card import KeepsEvaluations

    return models.training(version).record if isinstance(models, KeepsEvaluations) else None


def _authors(version: ModelVersion) -> list[str]:
    """Those who made a version: after the copy, only its record knows them, and they may not approve their own."""
    from dagster_mlops.promotion.approval import authors_of

    return authors_of(version)
