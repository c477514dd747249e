"""A package for MLflow's scoring server: the promoted model version and the app that serves it."""

import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.asset_records import dagster_facts, latest_records, upstream_refs
from dagster_mlops.core.files import own_folder, sync_tree
from dagster_mlops.core.model_judgement import judge_model
from dagster_mlops.core.options import asset_with
from dagster_mlops.core.private_files import private_folder, sync
from dagster_mlops.errors import DeploymentError, ModelVersionError
from dagster_mlops.mlflow_serving.resource import MlflowServingResource
from dagster_mlops.mlflow_serving.tool import FACTS_FILE, stored_package
from dagster_mlops.provenance import ModelVersion, Package
from dagster_mlops.serving.copies import PACKAGE, modules, write_copies


def scoring_package_asset(
    *, promoted: AssetLike, name: str = "scoring_package", resource_key: str = "mlflow_serving", **asset_options: Any
) -> dg.AssetsDefinition:
    """An asset that packs the model version which the asset `promoted` recorded for MLflow's scoring server.

    The tag is made of the version and a hash of its run and of the app, so an unchanged re-run finds its package. The
    tag is the asset's data version. :func:`dagster_mlops.serving.deployment_asset` serves it.

        package = scoring_package_asset(promoted="champion")
        deployment = deployment_asset(
            package=package, golden_set="golden", state_dir="state/serving", resource_key="mlflow_serving"
        )

    Args:
        promoted: An asset whose latest materialization holds the record of a model version.
        asset_options: Anything else that :func:`dagster.asset` takes.
    """
    key = asset_key(promoted)

    def package(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        resource: MlflowServingResource = getattr(context.resources, resource_key)
        version = next((r for r in latest_records(context.instance, key) if isinstance(r, ModelVersion)), None)
        if version is None:
            raise DeploymentError(
                f"no record of a model version on the latest materialization of {key.to_user_string()}. "
                "Materialize it first, or name the asset that promotes."
            )
        code = [Path(__file__).with_name("scoring_app.py"), *modules()]
        digest = hashlib.sha256(version.run_id.encode() + b"".join(file.read_bytes() for file in code)).hexdigest()
        record = Package(
            tool="mlflow_serving",
            tag=f"{re.sub(r'[^a-z0-9_.-]', '_', version.name.lower())}:{version.version}-{digest[:12]}",
            home=str(resource.home_dir),
            model_name=version.name,
            model_version=version.version,
            run_id=version.run_id,
            datasets=dict(version.datasets),
            sha256=version.sha256,
            upstream=tuple(dict.fromkeys((version.ref, *upstream_refs(context)))),
            **dagster_facts(context),
        )
        folder = resource.home_dir / record.tag.replace(":", "/")
        built = not stored_package(folder)
        if built:
            _build(resource, record, code, folder)
        # The run that built it wrote the record that the package carries; a re-run repeats it.
        stored = stored_package(folder)
        if stored is None:
            raise DeploymentError(f"{record.tag} was built but {folder} does not hold it. Build it again.")
        return dg.MaterializeResult(
            data_version=dg.DataVersion(record.tag),
            metadata=stored.to_metadata(
                {"mlflow_serving/path": dg.MetadataValue.path(str(folder)), "mlflow_serving/built": built}
            ),
        )

    return asset_with(
        asset_options,
        name=name,
        kinds=["mlflow"],
        deps=[key],
        required_resource_keys=[resource_key],
        description="The promoted model version, packed for MLflow's scoring server.",
    )(package)


def _build(resource: MlflowServingResource, record: Package, code: list[Path], folder: Path) -> None:
    """Make the package beside its place and move it there whole."""
    own_folder(resource.home_dir)
    private_folder(folder.parent)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder.parent) as scratch:
        draft = Path(scratch, "package")
        model = resource.download(record.model_name, record.model_version, draft / "model")
        rules = {"expected": [record.sha256], "allow_pickle": resource.allow_pickle, "trust": resource.trust}
        try:
            judgement = judge_model(f"{record.model_name}/{record.model_version}", model, **rules)
        except ModelVersionError as error:
            raise DeploymentError(f"Nothing was built: {error}") from error
        # The server compares with what was judged here, even where no hash is on record.
        record = dataclasses.replace(record, sha256=judgement.sha256)
        facts = {"record": record.to_dict(), "environment": dict(judgement.environment)}
        write_copies(draft, code[:1])
        write_copies(draft / PACKAGE, code[1:])
        (draft / FACTS_FILE).write_text(json.dumps(facts, indent=1))
        if stored_package(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
            sync_tree(draft)
            draft.rename(folder)
            sync(folder.parent)
