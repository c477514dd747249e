"""Answers for lineage whether a dataset version is accessible, inaccessible, deleted or damaged."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.git import git
from dagster_mlops.dvc.assets import observed_dataset
from dagster_mlops.dvc.lazy import Repo
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.store import objects
from dagster_mlops.dvc.store.contents import Content, cached_path, candidates, remote_has
from dagster_mlops.dvc.store.git_content import in_git
from dagster_mlops.dvc.store.lock_files import locked_output
from dagster_mlops.errors import DagsterMlopsError, DatasetError
from dagster_mlops.provenance import Accessible, Answer, Dataset, Deleted, Faulty, Inaccessible, Ref, mask_credentials
from dagster_mlops.tools import Datasets, answer_within, time_limit

_TIMEOUT = 10.0  # seconds
_HASHED_LIMIT = 200_000_000  # bytes; a larger copy is judged by its size


class DvcTool:
    """DVC as a tool of lineage: looks a dataset up in git's history, DVC's cache and the remote.

    A remote that is configured but cannot be reached makes a dataset inaccessible even while this machine's cache holds
    a copy, because no other machine could read it; the reason says so.
    """

    def resolve(self, ref: Ref) -> Answer:
        """Answer for ``path@md5`` of the repository `ref.at`, within ten seconds or the limit of the trace."""
        try:
            answer = answer_within(timeout := time_limit(_TIMEOUT), lambda: _answer(ref))
        except (DagsterMlopsError, OSError) as error:
            return Inaccessible(str(error))
        return answer or Inaccessible(f"{ref.at} did not answer within {timeout:g} s")

    def datasets(self, at: str) -> Datasets:
        """The repository at `at`, with its configured remotes."""
        return DvcResource(repo=at)

    def tracked_at(self, repository: Path, path: str, commit: str) -> Ref | None:
        """The version, at a commit, of the dataset or stage output that `path` is, or is in."""
        root = next((f for f in (repository / path).parents if (f / ".dvc").is_dir() and _within(f, repository)), None)
        if root is None:
            return None
        dvc = DvcResource(repo=str(root))
        inside = (repository / path).relative_to(root)
        for part in (inside, *inside.parents[:-1]):
            with suppress(DatasetError):
                md5 = str(dvc.data_version(part.as_posix(), rev=commit))
                return Ref("dvc", Dataset.role, f"{part.as_posix()}@{md5}", at=str(root))
        return None


def _within(folder: Path, top: Path) -> bool:
    return folder == top or folder.is_relative_to(top)


def _answer(ref: Ref) -> Answer:
    path, _, md5 = ref.id.rpartition("@")
    if ref.role != Dataset.role:
        return Faulty(f"DVC keeps datasets, not a {ref.role}")
    if not path or not md5:
        return Faulty(f"{ref.id!r} does not name a dataset version: 'path@md5' is expected")
    if not Path(ref.at).is_dir():
        return Inaccessible(f"the DVC repository {ref.at} is not on this machine")
    dvc = DvcResource(repo=ref.at)
    record, pointers = _pointed_to(dvc, path, md5)
    if not record and not pointers:
        return Deleted(f"neither {ref.at} nor its history in git has a pointer of {path}")
    with dvc.open(locked=False) as repo:
        answer = _content(repo, path, md5, record, *dvc.place_of(dvc.pointer_if_any(path)))
    if isinstance(answer, Deleted) and in_git(dvc.root, dvc.name_of(path), md5) is not None:
        return Accessible(record or Dataset(path=path, md5=md5, repo=str(dvc.root)))
    hashes = [pointer["outs"][0]["md5"] for pointer in pointers if "stage" not in pointer]
    if isinstance(answer, Deleted) and not record and hashes:
        names = ", ".join(dict.fromkeys(hashes[:3]))
        return Faulty(f"{path} never had the content {md5}, or git's history was rewritten: its pointer names {names}")
    return answer


def _pointed_to(dvc: DvcResource, path: str, md5: str) -> tuple[Dataset | None, list[dict[str, Any]]]:
    """The record of a version, from wherever in history its pointer is, and the pointers of other versions."""
    other_pointers: list[dict[str, Any]] = []
    pointer_file = f"./{dvc.name_of(path)}.dvc"
    changed = git(dvc.root, "log", "--all", "--format=%H", f"-S{md5}", "--", pointer_file).stdout.decode().split()
    # Newest first; HEAD when the search finds nothing, to say what the pointer names instead.
    for rev in [None, *changed, *([] if changed else ["HEAD"])]:
        try:
            pointer = dvc.pointer(path, rev=rev)
        except DatasetError:
            continue  # the commit that removed the pointer
        if pointer["outs"][0]["md5"] == md5:
            return observed_dataset(dvc, path, rev=rev), other_pointers
        other_pointers.append(pointer)
    return locked_output(dvc.root, path, md5), other_pointers


def _content(
    repo: Repo, path: str, md5: str, record: Dataset | None, remote_name: str | None, may_be_pushed: bool
) -> Answer:
    contents = candidates(md5)
    cached = next((content for content in contents if objects.cached(repo, content)), None)
    # History may have been rewritten since: the content is what its hash says, whoever names it.
    accessible = Accessible(record or Dataset(path=path, md5=md5, repo=str(repo.root_dir)))
    if cached and _damaged(copy := Path(cached_path(repo, cached)), cached):
        return Faulty(f"the cached content of {path} is not {md5} any more: {copy}", record)
    if not may_be_pushed or not repo.config["remote"]:
        if may_be_pushed and not cached and record and record.remote:
            # Others may have written the pointer, so that it does not say where to go.
            hint = "If it is one of yours, configure it: `dvc remote add --default --local NAME URL`."
            return Inaccessible(
                f"{repo.root_dir} has no remote; that of the record, {record.remote}, is not asked. {hint}", record
            )
        why = f"{repo.root_dir} has no remote" if may_be_pushed else "its output has push: false"
        return accessible if cached else Deleted(f"{path}: {md5} is not in the cache, and {why}", record)
    remote = objects.remote_url(repo, remote_name)
    note = "; this machine's cache has a copy" if cached else ""
    try:
        odbs = [repo.cloud.get_remote_odb(remote_name, "status", hash_name=content.algorithm) for content in contents]
        odb = odbs[0]
        if not odb.fs.exists(odb.fs.parent(odb.fs.parent(odb.path))):
            return Inaccessible(f"the DVC remote {remote} is gone{note}", record)
        odb = next((odb for odb in odbs if remote_has(odb, repo, md5, None)), None)
        size = odb.fs.info(odb.oid_to_path(md5))["size"] if odb else None
    except Exception as error:  # noqa: BLE001 (any of a dozen storage libraries; lineage must not break on one)
        return Inaccessible(f"the DVC remote {remote} fails: {mask_credentials(str(error))}{note}", record)
    if not odb:
        missing = Deleted(f"{path}: {md5} is neither in the cache nor in the remote {remote}", record)
        return accessible if cached else missing
    if not md5.endswith(".dir") and record and record.bytes not in (None, size):
        return Faulty(f"{remote} holds {size} bytes under {md5} instead of {record.bytes}", record)
    if odb.fs.protocol == "local" and _damaged(Path(odb.oid_to_path(md5)), Content(md5, odb.hash_name)):
        return Faulty(f"{remote} holds other bytes under {md5}", record)
    return accessible


def _damaged(file: Path, content: Content) -> bool:
    if content.is_folder or not file.is_file() or file.stat().st_size > _HASHED_LIMIT:
        return False
    md5 = extra("dvc_data.hashfile.hash").file_md5(str(file), extra("dvc.fs").localfs, name=content.algorithm)
    return md5 != content.md5
