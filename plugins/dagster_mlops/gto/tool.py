"""Answers lineage's questions about model versions in git tags."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster_mlops.core.git import git
from dagster_mlops.errors import ModelVersionError, ProvenanceError, RegistryError
from dagster_mlops.gto.history import REFS
from dagster_mlops.gto.models import GtoModels
from dagster_mlops.gto.resource import GtoResource
from dagster_mlops.provenance import Accessible, Answer, Deleted, Faulty, Inaccessible, Ref


class GtoTool:
    """Looks up a model version (``name/version``) in the repository that the ref names.

    >>> GtoTool().resolve(Ref("gto", "model_version", "churn/v1.0.0", at="/no/such/folder")).bucket
    'inaccessible'
    """

    def resolve(self, ref: Ref) -> Answer:
        """Answer from the local clone: the remote is not asked."""
        name, _, version = ref.id.rpartition("/")
        if not name or not version:
            return Faulty(f"{ref.id!r} does not name a model version: 'name/version' is expected")
        if not Path(ref.at).is_dir():
            return Inaccessible(f"the folder of the git repository is not there: {ref.at or 'not recorded'}")
        try:
            with GtoResource(repo=ref.at, timeout=5).models() as models:
                try:
                    return Accessible(models.recorded(name, version))
                except ProvenanceError as error:
                    return Faulty(str(error), models.bare(name, version))  # the tag still leads to the commit
        except ModelVersionError as error:
            return Deleted(str(error))
        except RegistryError as error:
            return Inaccessible(str(error))

    def has_registry(self, at: str) -> bool:
        """True for the folder of a git repository."""
        return "://" not in at and any(Path(at, name).exists() for name in (".git", "HEAD"))

    @contextmanager
    def models_at(self, at: str) -> Iterator[GtoModels]:
        """The registry in a git repository, with the remote that shares it.

        Raises:
            RegistryError: it is not one, or a remote cannot be read.
        """
        with GtoResource(repo=at, remote=_remote(at)).models() as models:
            yield models


def _remote(repo: str) -> str | None:
    """The remote that has refs of the registry beside the tags; None where it is shared by none."""
    for name in git(Path(repo), "remote").stdout.decode().split():
        process = git(Path(repo), "ls-remote", "--", name, f"{REFS}/*")
        if process.returncode:
            raise RegistryError(
                f"the remote {name!r} of {repo} cannot be read: {process.stderr.decode().strip()[:500]}"
            )
        if process.stdout:
            return name
    return None
