"""Answers lineage's questions about model versions in git tags."""

from pathlib import Path

from dagster_mlops.errors import ModelVersionError, ProvenanceError, RegistryError
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
