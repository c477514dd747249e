"""A bento built from exactly the model version that was promoted."""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.bentoml.resource import BentomlResource
from dagster_mlops.bentoml.tool import FACTS_FILE, stored_bento
from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.asset_records import dagster_facts, latest, upstream_refs
from dagster_mlops.core.child import ChildError, run_child
from dagster_mlops.core.files import own_folder
from dagster_mlops.core.options import asset_with
from dagster_mlops.errors import DeploymentError
from dagster_mlops.provenance import ModelVersion, Package
from dagster_mlops.serving.copies import PACKAGE, modules, write_copies

if TYPE_CHECKING:
    from dagster_mlops.serving.runtime import Lookup

_GENERIC_SERVICE = f'''"""Serves the model of this bento and logs every prediction."""

from pathlib import Path

from {PACKAGE}.service import mlflow_service

service = mlflow_service(Path(__file__).with_name("{FACTS_FILE}"))
'''


def bento_asset(
    *,
    name: str = "bento",
    promoted: AssetLike,
    service: str | Path | None = None,
    include: Sequence[str | Path] = (),
    packages: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    lookup: "Lookup | None" = None,
    resource_key: str = "bentoml",
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset that builds a bento from the model version which the asset `promoted` recorded.

    The tag is made of the model version and a hash of everything that goes into the bento, so an unchanged re-run finds
    its bento and builds nothing. The tag is the asset's data version.

        bento = bento_asset(promoted="champion", packages=["scikit-learn", "pandas", "mlflow"])

    Args:
        promoted: the upstream asset whose latest materialization holds a ``ModelVersion`` record.
        service: a file with your own ``bentoml.service``; it finds ``dagster_mlops.json`` (name, model, model_name, …)
            beside itself and may use ``from dagster_mlops_serving import PredictionLog``. Default: the generic service
            for any MLflow model with a signature, see :func:`dagster_mlops.bentoml.service.mlflow_service`.
        include: more files or folders to put beside the service.
        packages: pip requirements for the bento's container image, beside those that the model was logged with.
        lookup: a source of features, such as an ``OnlineLookup``: clients of the generic service may then send the keys
            of entities in place of features.
        asset_options: anything else that :func:`dagster.asset` takes.
    """

    promoted_key = asset_key(promoted)
    if lookup and service:
        raise dg.DagsterInvalidDefinitionError(
            f"bento_asset {name!r}: lookup= is for the generic service; your own reads features itself."
        )

    def bento(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        resource: BentomlResource = getattr(context.resources, resource_key)
        promoted_version = latest(
            context,
            promoted_key,
            ModelVersion,
            error=DeploymentError,
            hint="Materialize it first, or point promoted= at the asset that promotes.",
        )
        model = {"model_name": promoted_version.name, "model_version": promoted_version.version}
        with tempfile.TemporaryDirectory(prefix="dagster_mlops_bento_") as folder:
            context_dir = Path(folder) / "src"
            entry = _collect(context_dir, service, include)
            looked_up = lookup.spec() if lookup else {}
            all_packages = sorted({*packages, *looked_up.get("packages", ())})
            parts = [json.dumps(labels or {}), *([json.dumps(looked_up, sort_keys=True)] if lookup else [])]
            digest = _digest(context_dir, [promoted_version.run_id, *all_packages, *parts])
            bento_name = re.sub(r"[^a-z0-9_.-]", "_", promoted_version.name.lower())
            bento_version = f"{promoted_version.version}-{digest[:12]}"
            record = Package(
                tag=f"{bento_name}:{bento_version}",
                home=str(resource.home_dir),
                **model,
                run_id=promoted_version.run_id,
                datasets=dict(promoted_version.datasets),
                sha256=promoted_version.sha256,
                upstream=tuple(dict.fromkeys((promoted_version.ref, *upstream_refs(context)))),
                **dagster_facts(context),
            )
            facts = {
                "name": bento_name,
                "tag": record.tag,
                "model": f"{bento_name}:{promoted_version.version}-{(promoted_version.run_id or digest)[:12]}",
                **model,
                "sha256": record.sha256,
                "record": record.to_dict(),
                "lookup": looked_up,
                "generic_service": service is None,
            }
            (context_dir / FACTS_FILE).write_text(json.dumps(facts, indent=1))
            spec = {
                **facts,
                "version": bento_version,
                "model_uri": f"models:/{promoted_version.name}/{promoted_version.version}",
                "service": entry,
                "facts_file": FACTS_FILE,
                "build_ctx": str(context_dir),
                "packages": all_packages,
                "allow_pickle": resource.allow_pickle,
                "trust": resource.trust,
                "labels": {
                    **model,
                    "run_id": promoted_version.run_id,
                    **{f"dataset/{path}": md5 for path, md5 in promoted_version.datasets.items()},
                    **(labels or {}),
                },
            }
            built = not stored_bento(resource.home_dir, record.tag)
            if built:
                context.log.info(f"Building {record.tag} from {spec['model_uri']}.")
                _build(resource, Path(folder), spec)
        # The one who built it wrote the record that the bento carries; a re-run repeats it rather than contradict it.
        stored = stored_bento(resource.home_dir, record.tag)
        if stored is None:
            raise DeploymentError(f"{record.tag} was built but {resource.home_dir} does not hold it. Build it again.")
        item = resource.bentos().get(record.tag)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(record.tag),
            metadata=stored.to_metadata(
                {
                    "bentoml/bytes": item.file_size,
                    "bentoml/path": dg.MetadataValue.path(item.path),
                    "bentoml/dockerfile": dg.MetadataValue.path(item.path_of("env/docker/Dockerfile")),
                    "bentoml/model_tag": facts["model"],
                    "bentoml/built": built,
                }
            ),
        )

    return asset_with(
        asset_options,
        name=name,
        description="A bento: the promoted model version, its service code and its requirements.",
        kinds=["bentoml"],
        deps=[promoted_key],
        required_resource_keys=[resource_key],
    )(bento)


def _collect(context_dir: Path, service: str | Path | None, include: Sequence[str | Path]) -> str:
    """Fill the build context and return BentoML's import string of the service."""
    write_copies(context_dir / PACKAGE, [*modules(), Path(__file__).with_name("service.py")])
    for source in map(Path, [*([service] if service else []), *include]):
        if not source.exists():
            raise DeploymentError(f"{source} (looked for in {Path.cwd()}) is not there. Give an absolute path.")
        target = context_dir / source.name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    if service:
        return Path(service).stem
    (context_dir / "service.py").write_text(_GENERIC_SERVICE)
    return "service:service"


def _digest(folder: Path, facts: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join(facts).encode())
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"\0{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _build(resource: BentomlResource, folder: Path, spec: Mapping[str, Any]) -> None:
    script = Path(__file__).with_name("_build_script.py")
    own_folder(resource.home_dir)
    try:
        run_child(script, spec, cwd=Path.cwd(), env=resource.build_environment(), timeout=resource.build_timeout)
    except ChildError as error:
        if error.returncode is None:
            raise DeploymentError(
                f"building {spec['tag']} took longer than build_timeout={resource.build_timeout:g} s and was stopped. "
                "Raise it on the bentoml resource, or look at why the model cannot be fetched."
            ) from error
        raise DeploymentError(
            f"building {spec['tag']} from {spec['model_uri']} failed:\n{error.text[-3000:]}"
        ) from error
