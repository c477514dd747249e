"""The Feast tool, which resolves refs of feature views and training sets for lineage."""

from pathlib import Path

from dagster_mlops.core.extras import extra
from dagster_mlops.core.git import runs_no_code_of_checkouts
from dagster_mlops.errors import DagsterMlopsError, FeatureError, ProvenanceError
from dagster_mlops.feast.lazy import FeatureStore
from dagster_mlops.feast.rebuild import snapshot
from dagster_mlops.feast.rebuild.replay import rebuild_file
from dagster_mlops.feast.repository import registry
from dagster_mlops.feast.repository.load import read_config
from dagster_mlops.feast.resource import FeastResource
from dagster_mlops.provenance import FeatureView, Record, Ref, TrainingSet
from dagster_mlops.provenance.answers import Accessible, Answer, Deleted, Faulty, Inaccessible
from dagster_mlops.tools import answer_within, time_limit


class FeastTool:
    """Resolver of ``feature_view`` and ``training_set`` refs, whose ``at`` is the folder of a Feast repository.

        FeastTool().resolve(Ref("feast", "feature_view", "flights/origin_weather", at="/srv/feature_repo"))

    The first call in a process imports Feast, which takes some seconds. A registry that does not answer within
    `timeout` seconds, or the limit of the trace, is inaccessible.
    """

    def __init__(self, timeout: float = 10) -> None:
        self.timeout = timeout
        self._stores: dict[str, FeatureStore] = {}

    def resolve(self, ref: Ref) -> Answer:
        """The answer for one ref; a missing or broken record is an answer, not an error."""
        if ref.role not in (FeatureView.role, TrainingSet.role):
            return Faulty(f"Feast keeps feature views and training sets, not a {ref.role}")
        try:
            config = read_config(ref.at)
            if config.registry_file and not config.registry_file.exists():
                return Inaccessible(f"the Feast registry {config.registry_file} is not there")
            extra("feast")  # the slow import does not count for the registry's timeout
        except (DagsterMlopsError, ImportError) as error:
            return Inaccessible(str(error))
        answer = answer_within(timeout := time_limit(self.timeout), lambda: self._ask(ref, str(config.path)))
        return answer or Inaccessible(f"the Feast registry of {ref.at} did not answer within {timeout:g} s")

    def rebuild(self, ref: Ref, folder: Path) -> Path:
        """Rebuild the training set of a ref from its recorded data and definitions, as a Parquet file in `folder`.

        Raises:
            FeatureError: Something is missing, or the result is not the same.
            DagsterMlopsError: A dataset cannot be read back.
        """
        file = folder / "training_set.parquet"
        with runs_no_code_of_checkouts():  # the registry names the repositories of the data
            rebuild_file(FeastResource(repo=ref.at), ref.id, file)
        return file

    def _ask(self, ref: Ref, repo: str) -> Answer:
        try:
            if repo not in self._stores:
                self._stores[repo] = extra("feast").FeatureStore(repo_path=repo)
            return _answer(self._stores[repo], ref)
        except Exception as error:  # noqa: BLE001 - any error of a registry's driver makes it inaccessible
            return Inaccessible(f"the Feast registry of {repo} cannot be read: {error}")


def _answer(store: FeatureStore, ref: Ref) -> Answer:
    project, _, thing = ref.id.partition("/")
    if ref.role == "feature_view" and thing.count("@") == 1:  # the whole version names it as well as its beginning
        view, version = thing.split("@")
        ref = FeatureView(name=view, project=project, version=version, repo=ref.at).ref
    if project != store.project:
        return Deleted(f"the Feast repository {ref.at} now holds project {store.project!r}, not {project!r}")
    try:
        record = registry.get_record(store, ref)
    except ProvenanceError as error:
        return Faulty(f"the record of {ref} in the Feast registry cannot be read: {error}")
    if ref.role == "feature_view":
        view = thing.partition("@")[0]
        # The code of on-demand views is a pickle, which would be loaded for their names.
        views = store.registry.list_all_feature_views(project, skip_udf=True)
        if view not in {definition.name for definition in views}:
            return Deleted(f"feature view {view!r} is no longer in project {project!r}", record)
        return Accessible(record) if record else Deleted(f"the registry has no record of {thing!r}")
    return _training_set(store, thing, record)


def _training_set(store: FeatureStore, thing: str, record: Record | None) -> Answer:
    """The answer for a training set, which outlives its feature service if its snapshot is in the registry."""
    if not isinstance(record, TrainingSet):
        return Deleted(f"the registry has no record of training set {thing!r}")
    try:
        if record.snapshot and snapshot.get(store, record.snapshot):
            return Accessible(record)
    except FeatureError as error:
        return Faulty(str(error), record)
    problem = f"; its snapshot {record.snapshot}, by which it could be rebuilt, is gone" if record.snapshot else ""
    service, _, hashes = thing.partition("@")
    if service not in {definition.name for definition in store.registry.list_feature_services(store.project)}:
        return Deleted(f"feature service {service!r} is no longer in project {store.project!r}{problem}", record)
    current_hash = registry.registry_hash(store, service)
    if not current_hash.startswith(hashes.partition("+")[0]):
        return Faulty(
            f"feature service {service!r} was redefined: its registry hash was {hashes[:12]}, "
            f"now {current_hash[:12]}{problem}",
            record,
        )
    return Faulty(f"{thing!r} cannot be rebuilt{problem}", record) if problem else Accessible(record)
