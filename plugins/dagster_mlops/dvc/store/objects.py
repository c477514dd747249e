"""The objects that a version consists of: looked up, verified and copied in cache and remote, later after a kill."""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote

from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import if_free
from dagster_mlops.core.private_files import private_folder
from dagster_mlops.dvc.lazy import Repo
from dagster_mlops.dvc.store import remotes
from dagster_mlops.dvc.store.contents import LEGACY, Content, cache_of, cached_path, files_in, remote_has
from dagster_mlops.dvc.store.pointers import scratch
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import NAMESPACE, mask_credentials

_log = logging.getLogger(__name__)
_AGAIN = "It is cached and its pointer is committed: re-run, or `dvc push`, once the remote answers."


def remote_url(repo: Repo, remote: str | None) -> str:
    """The URL of the remote, credentials masked.

    Raises:
        DatasetError: there is no such remote, or no default.
    """
    name = remote or repo.config["core"].get("remote")
    remotes_by_name = repo.config["remote"]
    if name not in remotes_by_name:
        raise DatasetError(
            f"{repo.root_dir} has {f'no DVC remote {name!r}' if name else 'no default DVC remote'} (known: "
            f"{', '.join(remotes_by_name) or 'none'}). Add one with DvcResource.init(remote_url=…), or set push=False."
        )
    return mask_credentials(remotes_by_name[name]["url"])


def push(repo: Repo, content: Content, size: int, remote: str | None) -> None:
    """Copy the content to the remote unless it is there, and verify that it arrived.

    Raises:
        DatasetError: the remote cannot be reached, or did not take the content.
    """
    where, md5 = remote_url(repo, remote), content.md5
    remotes.bound_waits(repo)
    cache = cache_of(repo, content.algorithm)

    def once() -> bool:
        odb = repo.cloud.get_remote_odb(remote, "push", hash_name=content.algorithm)
        if remote_has(odb, repo, md5, size):
            return True
        if not content.is_folder and odb.exists(md5):
            odb.fs.remove(odb.oid_to_path(md5))  # cut off: DVC would take it for complete
        remotes.transfer(repo, cache, odb, content, shallow=False)
        return remote_has(odb, repo, md5, size)

    if not remotes.attempt(once, f"{md5} cannot be pushed to {where}", lambda remedy: f"{remedy} {_AGAIN}"):
        raise DatasetError(f"{md5} was pushed to {where}, but is not there. {_AGAIN}")


def cached(repo: Repo, content: Content) -> bool:
    """True if DVC's cache has all of a version. Damaged objects are removed: DVC would take them for intact."""
    _discard(damaged(repo, content))
    return _is_complete(repo, content)


def _is_complete(repo: Repo, content: Content) -> bool:
    return all(os.path.exists(path) for path in _paths(repo, content))


def damaged(repo: Repo, content: Content, *, reread: bool = False) -> list[Path]:
    """The cached files of a version that do not hash to their name. A missing file is not damaged.

    A file with the size and time that DVC saved when it hashed it is read again only with `reread`.
    """
    # The list of a folder's files before the files: a damaged list names wrong ones.
    return _damaged(repo, [content], reread=reread) or _damaged(repo, _contents(repo, content)[1:], reread=reread)


def _damaged(repo: Repo, contents: Sequence[Content], *, reread: bool) -> list[Path]:
    local, infos, expected = extra("dvc.fs").localfs, {}, {}
    for content in contents:
        path = cached_path(repo, content)
        with suppress(FileNotFoundError):
            infos[path], expected[path] = local.info(path), content
    saved = () if reread else repo.state.get_many(infos, local, infos)
    earlier = {
        path: str(old.value).removesuffix(".dir")
        for path, _, old in saved
        if old and old.name == expected[path].algorithm
    }
    file_md5 = extra("dvc_data.hashfile.hash").file_md5
    computed = {path: file_md5(path, local, name=expected[path].algorithm) for path in infos if path not in earlier}
    new = [(path, Content(value, expected[path].algorithm).info, infos[path]) for path, value in computed.items()]
    repo.state.save_many(new, local)
    return [
        Path(path)
        for path, value in {**earlier, **computed}.items()
        if value != expected[path].md5.removesuffix(".dir")
    ]


def pull(repo: Repo, contents: Sequence[Content], remote: str | None, *, path: str) -> Content:
    """Copy a version from the remote into the cache; returns which of the `contents` it is: of one of DVC's stores.

    Its bytes are hashed, and the list of a folder's files before anything is done with its names: others may write to
    the remote. DVC would hash them only if the remote's option ``verify`` is on.

    Raises:
        DatasetError: the remote does not have it or cannot be reached, or sends other bytes.
    """
    url = remote_url(repo, remote)
    remotes.bound_waits(repo)
    where = f"{path} at {contents[0].md5} is neither in the workspace nor in the cache of {repo.root_dir}"
    fix = "Push it from a machine that has it (`dvc push --all-commits`), or materialize the dataset."

    def once() -> Content | None:
        for content in contents:
            odb, cache = (
                repo.cloud.get_remote_odb(remote, "fetch", content.algorithm),
                cache_of(repo, content.algorithm),
            )
            try:
                remotes.transfer(repo, odb, cache, content, shallow=True)
                if not os.path.exists(cached_path(repo, content)):
                    continue
                if _damaged(repo, [content], reread=True):
                    return content
                if files_in(repo, content):
                    remotes.transfer(repo, odb, cache, content, shallow=False)
            except Exception:
                # DVC may have put an incomplete file in place.
                _discard(damaged(repo, content, reread=True))
                raise
            if _is_complete(repo, content):
                return content
        return None

    content = remotes.attempt(once, f"{where}, and its remote {url} fails", lambda remedy: remedy or fix)
    if content is None:
        raise DatasetError(f"{where}, nor in its remote {url}. {fix}")
    if wrong := damaged(repo, content, reread=True):
        _discard(wrong)
        raise DatasetError(f"{where}, and {url} holds other bytes under that hash. {fix}")
    return content


def _contents(repo: Repo, content: Content) -> list[Content]:
    """The version itself, and a folder's files if their list is cached."""
    return [content, *files_in(repo, content).values()]


def _paths(repo: Repo, content: Content) -> list[str]:
    """The cached files of a version."""
    return [cached_path(repo, part) for part in _contents(repo, content)]


def _unchanged(source: str, copy: Path) -> bool:
    """True if `copy` is a link to `source`, or has its size and time."""
    try:
        left, right = os.stat(source), os.stat(copy)
    except FileNotFoundError:
        return False
    return os.path.samestat(left, right) or (left.st_size, left.st_mtime_ns) == (right.st_size, right.st_mtime_ns)


def _discard(files: Sequence[Path]) -> None:
    for file in files:
        with suppress(OSError):  # a cache that is read-only stays as it is
            file.unlink()


def checkout(repo: Repo, content: Content, *, name: str) -> Path:
    """A read-only copy of a cached version outside the workspace, by links if the disk allows them."""
    copy = Path(repo.tmp_dir or "", NAMESPACE, "versions", content.md5, name)
    parts = files_in(repo, content) if content.is_folder else {"": content}
    sources = {relpath: cached_path(repo, part) for relpath, part in parts.items()}
    if copy.exists() and all(_unchanged(source, copy / relpath) for relpath, source in sources.items()):
        return copy
    new = scratch(repo)
    for inner in {new, *((new / relpath).parent for relpath in parts)} if content.is_folder else ():
        inner.mkdir(parents=True, exist_ok=True)
    for relpath, source in sources.items():
        try:
            os.link(source, new / relpath)
        except OSError:  # another disk, or a file system without links
            shutil.copy2(source, new / relpath)
    private_folder(copy.parent)
    with suppress(FileNotFoundError):
        os.replace(copy, scratch(repo))  # incomplete; a folder cannot be replaced in one step
    try:
        os.replace(new, copy)
    except OSError:
        if not copy.is_dir():
            raise
        shutil.rmtree(new)  # another process was faster
    return copy


@contextmanager
def noted(repo: Repo, content: Content, size: int, remote: str | None) -> Iterator[None]:
    """Keep a note that a version is to be pushed, until the body has ended without an error."""
    folder = private_folder(_folder(repo))
    algorithm = f" {LEGACY}" if content.algorithm == LEGACY else ""
    with _held(folder / quote(f"{content.md5} {size} {remote or ''}{algorithm}", safe="")):
        yield


def push_noted(repo: Repo) -> None:
    """Push the versions that earlier calls left; one that fails once more stays noted, with a warning in the log.

    A version that another process is pushing is left to it; one that is no longer complete in the cache is dropped.
    """
    folder = _folder(repo)
    for note in sorted(folder.iterdir()) if folder.is_dir() else ():
        md5, size, remote, *algorithm = unquote(note.name).split(" ", 3)
        content = Content(md5, *algorithm)
        try:
            with _held(note) as ours:
                if ours and cached(repo, content):
                    push(repo, content, int(size), remote or None)
        except DatasetError as error:
            _log.warning("An older version is still not pushed: %s", error)


@contextmanager
def _held(note: Path) -> Iterator[bool]:
    """Hold a note, and remove it at the end unless there was an error; False if another process holds it."""
    with if_free(note) as ours:
        yield ours
        if ours:
            note.unlink(missing_ok=True)


def _folder(repo: Repo) -> Path:
    return Path(repo.tmp_dir or "", NAMESPACE, "unpushed")
