"""Answers for lineage whether a dataset version is accessible, inaccessible, deleted or damaged."""

from pathlib import Path

from dagster_mlops.core.extras import extra
from dagster_mlops.core.git import git
from dagster_mlops.dvc.assets import observed_dataset
from dagster_mlops.dvc.lazy import Repo
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.store import objects
from dagster_mlops.dvc.store.pointers import locked_output
from dagster_mlops.errors import DagsterMlopsError, DatasetError
from dagster_mlops.provenance import Accessible, Answer, Dataset, Deleted, Faulty, Inaccessible, Ref, mask_credentials
from dagster_mlops.tools import Datasets, answer_within

_TIMEOUT = 10.0  # seconds
_HASHED_LIMIT = 200_000_000  # bytes; a larger copy is judged by its size


class DvcTool:
    """DVC as a tool of lineage: looks a dataset up in git's history, DVC's cache and the remote.

    A remote that is configured but cannot be reached makes a dataset inaccessible even while this machine's cache holds
    a copy, because no other machine could read it; the reason says so.
    """

    def resolve(self, ref: Ref) -> Answer:
        """Answer for ``path@md5`` of the repository `ref.at`, within ten seconds."""
        try:
            answer = answer_within(_TIMEOUT, lambda: _answer(ref))
        except (DagsterMlopsError, OSError) as error:
            return Inaccessible(str(error))
        return answer or Inaccessible(f"{ref.at} did not answer within {_TIMEOUT:g} s")

    def datasets(self, at: str) -> Datasets:
        """The repository at `at`, with its configured remotes."""
        return DvcResource(repo=at)


def _answer(ref: Ref) -> Answer:
    path, _, md5 = ref.id.rpartition("@")
    if ref.role != Dataset.role:
        return Faulty(f"DVC keeps datasets, not a {ref.role}")
    if not path or not md5:
        return Faulty(f"{ref.id!r} does not name a dataset version: 'path@md5' is expected")
    if not Path(ref.at).is_dir():
        return Inaccessible(f"the DVC repository {ref.at} is not on this machine")
    dvc = DvcResource(repo=ref.at)
    with dvc.open(locked=False) as repo:
        versioned, configured = not isinstance(repo.scm, extra("dvc.scm").NoSCM), bool(repo.config["remote"])
    record, other_hashes = _pointed_to(dvc, path, md5)
    if record is None and versioned:
        if other_hashes:
            return Faulty(f"{path} never had the content {md5}: its pointer names {', '.join(other_hashes[:3])}")
        return Deleted(f"git's history of {ref.at} has no pointer of {path}")
    # A clone of the repository may know the remote from the record only.
    url = record.remote if record and not configured and "***" not in record.remote else None
    with DvcResource(repo=ref.at, remote_url=url or None).open(locked=False) as repo:
        return _content(repo, path, md5, record)


def _pointed_to(dvc: DvcResource, path: str, md5: str) -> tuple[Dataset | None, list[str]]:
    """The record of a version, from wherever in history its pointer is, and the other hashes of that pointer."""
    other_hashes: list[str] = []
    pointer_file = f"./{dvc.name_of(path)}.dvc"
    changed = git(dvc.root, "log", "--all", "--format=%H", f"-S{md5}", "--", pointer_file).stdout.decode().split()
    # Newest first; HEAD when the search finds nothing, to say what the pointer names instead.
    for rev in [None, *changed, *([] if changed else ["HEAD"])]:
        try:
            pointer = dvc.pointer(path, rev=rev)
        except DatasetError:
            continue  # the commit that removed the pointer
        content = pointer["outs"][0]["md5"]
        if content == md5:
            return observed_dataset(dvc, path, rev=rev), other_hashes
        if "stage" not in pointer:  # the output of a stage may never have been committed
            other_hashes.append(content)
    return locked_output(dvc.root, path, md5), list(dict.fromkeys(other_hashes))


def _content(repo: Repo, path: str, md5: str, record: Dataset | None) -> Answer:
    cached = objects.cached(repo, md5)
    copy = Path(repo.cache.local.oid_to_path(md5))
    accessible = Accessible(record) if record else Faulty(f"{path} has content {md5}, but no pointer names it")
    if cached and _damaged(copy, md5):
        return Faulty(f"the cached content of {path} is not {md5} any more: {copy}", record)
    if not repo.config["remote"]:
        deleted = Deleted(f"{path}: {md5} is not in the cache, and {repo.root_dir} has no remote", record)
        return accessible if cached else deleted
    remote = objects.remote_url(repo, None)
    note = "; this machine's cache has a copy" if cached else ""
    try:
        odb = repo.cloud.get_remote_odb(None, "status")
        if not odb.fs.exists(odb.fs.parent(odb.fs.parent(odb.path))):
            return Inaccessible(f"the DVC remote {remote} is gone{note}", record)
        is_remote = objects.remote_has(odb, repo, md5, None)
        size = odb.fs.info(odb.oid_to_path(md5))["size"] if is_remote else None
    except Exception as error:  # noqa: BLE001 (any of a dozen storage libraries; lineage must not break on one)
        return Inaccessible(f"the DVC remote {remote} fails: {mask_credentials(str(error))}{note}", record)
    if not is_remote and not cached:
        return Deleted(f"{path}: {md5} is neither in the cache nor in the remote {remote}", record)
    if is_remote and not md5.endswith(".dir") and record and record.bytes not in (None, size):
        return Faulty(f"{remote} holds {size} bytes under {md5} instead of {record.bytes}", record)
    if is_remote and odb.fs.protocol == "local" and _damaged(Path(odb.oid_to_path(md5)), md5):
        return Faulty(f"{remote} holds other bytes under {md5}", record)
    return accessible


def _damaged(file: Path, md5: str) -> bool:
    if md5.endswith(".dir") or not file.is_file() or file.stat().st_size > _HASHED_LIMIT:
        return False
    return extra("dvc_data.hashfile.hash").file_md5(str(file), extra("dvc.fs").localfs) != md5
