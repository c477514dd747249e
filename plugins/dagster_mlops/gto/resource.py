"""A git repository whose tags are a model registry, as GTO defines them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from dagster_mlops.core.asset_records import dagster_facts, upstream_refs
from dagster_mlops.core.extras import extra
from dagster_mlops.core.resources import LoadsModels
from dagster_mlops.errors import RegistryError
from dagster_mlops.gto.models import GtoModels
from dagster_mlops.provenance import ModelVersion

if TYPE_CHECKING:
    from gto.registry import GitRegistry


class GtoResource(LoadsModels):
    """A model registry in git tags: ``churn@v1.2.0`` is a version, ``churn#champion#7`` gives it an alias (a stage).

        @dg.asset
        def churn_model(context: dg.AssetExecutionContext, gto: GtoResource) -> dg.MaterializeResult:
            ...  # train, save an MLmodel folder where artifacts.yaml says, commit it
            version = gto.register(context, "churn", metrics={"auc": 0.71})
            return dg.MaterializeResult(metadata=version.to_metadata())

        champion = promotion_asset(
            candidate=churn_model, registered_model_name="churn", metric="auc", registry="gto"
        )

    What we keep with a version (its record, the history of its alias, its evaluation) are refs below
    ``refs/dagster_mlops``, which travel with the tags.
    """

    repo: str = Field(description="Folder of the git repository; best a clone that only Dagster uses.")
    remote: str | None = Field(
        default=None, description="Name of the git remote that shares the registry, such as origin; local by default."
    )
    timeout: float = Field(default=60.0, gt=0, description="Seconds for one command of git.")

    @contextmanager
    def open(self) -> "Iterator[GitRegistry]":
        """GTO's own registry object.

        Raises:
            RegistryError: the folder is not a git repository.
        """
        folder = Path(self.repo).absolute()
        if not folder.joinpath(".git").exists() and not folder.joinpath("HEAD").exists():
            raise RegistryError(f"{folder} is not a git repository. Clone it there, or correct repo=.")
        with extra("gto.registry").GitRegistry.from_url(str(folder)) as registry:
            yield registry

    @contextmanager
    def models(self) -> Iterator[GtoModels]:
        """The model registry, as promotion and evaluation use it, up to date with the remote.

        Raises:
            RegistryError: the folder is not a git repository, the remote cannot be read, or GTO refuses a name.
        """
        with self.open() as registry:
            models = GtoModels(self, registry)
            models.synchronize()
            try:
                yield models
            except extra("gto.exceptions").GTOException as error:
                raise RegistryError(f"GTO refuses this in {self.repo}: {str(error).strip()}") from error

    def register(
        self,
        context: dg.AssetExecutionContext,
        name: str,
        *,
        rev: str = "HEAD",
        version: str | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> ModelVersion:
        """Make a commit a version of a model, unless it is one; returns the record for the asset's metadata.

        Args:
            context: Context of the asset that trained the model.
            name: Name of the model, as in ``artifacts.yaml`` or ``dvc.yaml``, which say where its files are.
            rev: The commit that holds the files.
            version: Number such as v1.2.0; by default the next patch of the latest version.
            metrics: Metrics of the training, which promotion compares.

        Raises:
            RegistryError: the remote refuses the version.
        """
        with self.models() as models:
            return models.register(
                name,
                rev=rev,
                version=version,
                metrics=dict(metrics or {}),
                upstream=upstream_refs(context),
                **dagster_facts(context),
            )
