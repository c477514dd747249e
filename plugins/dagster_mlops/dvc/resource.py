"""A git + DVC repository: stores datasets, and reads back any version of them."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from dagster_mlops.core.extras import extra
from dagster_mlops.core.git import git
from dagster_mlops.dvc.store import file_formats, locks, objects, pointers, push_journal, remotes
from dagster_mlops.dvc.store.create import create, set_remote
from dagster_mlops.dvc.store.dvc_lock import locked_out
from dagster_mlops.dvc.store.git_commit import Edit, commit, run, toplevel
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Dataset

if TYPE_CHECKING:
    from dvc.repo import Repo


class DvcResource(dg.ConfigurableResource):
    """A git + DVC repository. :meth:`open` hands out DVC's own ``Repo``.

        dvc = DvcResource(repo="/data/flights")
        dvc.init(remote_url="s3://ml-data/dvc")
        version = dvc.store("raw/flights.parquet", rows=336_776)
        dvc.read_path("raw/flights.parquet", md5=version.md5)

    A second process waits for the repository's lock, at most `lock_timeout` seconds. :meth:`store` may be killed at any
    instruction: the finished steps stay valid, and a second call completes the others and repeats nothing.
    """

    repo: str = Field(description="Folder of the DVC repository. Dataset paths are relative to it.")
    remote: str | None = Field(
        default=None, description="Name of the DVC remote; else the repository's default remote."
    )
    remote_url: str | None = Field(
        default=None,
        description="URL of the remote, overriding the repository's configuration. With it, a repository that does "
        "not exist yet is created at first use.",
    )
    remote_config: dict[str, Any] = Field(
        default={},
        description="Options of the remote as DVC names them (endpointurl, access_key_id, secret_access_key, profile, "
        "…), on top of the repository's configuration. They stay in memory. Give secrets as EnvVar: Dagster stores "
        "the text of this field.",
    )
    push: bool = Field(default=True, description="Push new content to the remote, and verify that it arrived.")
    commit: bool = Field(default=True, description="Commit new pointer files to git.")
    lock_timeout: float = Field(default=60.0, description="Seconds to wait for DVC's or git's lock.")
    author_name: str | None = Field(default=None, description="Author of the commits; else git's own user.name.")
    author_email: str | None = Field(default=None, description="Author of the commits; else git's own user.email.")

    @property
    def root(self) -> Path:
        """The folder that dataset paths are relative to."""
        return Path(self.repo).expanduser().resolve()

    @contextmanager
    def open(self, *, locked: bool = True) -> Iterator["Repo"]:
        """DVC's own ``Repo``, under the repository's lock unless `locked` is false (enough for reading).

        Raises:
            DatasetError: there is no DVC repository, or another process holds its lock for `lock_timeout` seconds.
        """
        open_repo, no_repo = extra("dvc.repo").Repo, extra("dvc.exceptions").NotDvcRepoError
        remotes.log_as_python_does()
        try:
            repo = open_repo(str(self.root), config=self.config())
        except no_repo as error:
            if not self.remote_url:
                raise DatasetError(
                    f"{self.root} is not a DVC repository. Create one: DvcResource(repo={self.repo!r}).init()."
                ) from error
            self.init()
            repo = open_repo(str(self.root), config=self.config())
        except extra("dvc.config").ConfigError as error:
            raise DatasetError(f"DVC cannot use the configuration of {self.root}: {error}") from error
        remotes.bound_waits(repo)
        try:
            if locked:
                with locks.locked(repo, self.lock_timeout):
                    yield repo
            else:
                yield repo
        finally:
            repo.close()

    def config(self) -> dict[str, Any]:
        """The fields as overrides of the repository's DVC configuration, for ``Repo(config=…)``. They may hold secrets.

        Raises:
            DatasetError: an environment variable named in `remote_config` is not set.
        """
        options = remotes.in_memory(self.remote_config) | ({"url": self.remote_url} if self.remote_url else {})
        if not options:
            return {}
        name = self._remote
        if not self.remote and not self.remote_url:
            name = remotes.default_remote(str(self.root)) or name
        return {"remote": {name: options}, "core": {"remote": name}}

    def init(self, remote_url: str | None = None) -> None:
        """Create what is missing of the git repository, the DVC repository and its default remote.

        A folder inside a checkout becomes a DVC subproject of it, unless the checkout ignores the folder: then it gets
        its own git repository. Without git, DVC works, but pointers have no history. The remote goes into
        ``.dvc/config.local``: DVC reads ``.dvc/config`` at the revision of a request, where a remote that was added
        later is unknown.
        """
        remote_url = remote_url or self.remote_url
        self.root.mkdir(parents=True, exist_ok=True)
        with locks.alone(self.root, self.lock_timeout):
            top = toplevel(self.root)
            if top is None or (top != self.root and git(top, "check-ignore", "-q", str(self.root)).returncode == 0):
                top = self.root if git(self.root, "init", "-q").returncode == 0 else None
            if remote_url and "://" not in remote_url:
                remote_url = str(Path(remote_url).expanduser().absolute())
                Path(remote_url).mkdir(parents=True, exist_ok=True)
            create(self.root, versioned=top is not None, remote=(self._remote, remote_url) if remote_url else None)
            if remote_url:
                repo = extra("dvc.repo").Repo(str(self.root))
                url = repo.config["remote"].get(self._remote, {}).get("url")
                if repo.config["core"].get("remote") != self._remote or remote_url != url:
                    with locks.locked(repo, self.lock_timeout):
                        set_remote(self.root, self._remote, remote_url)
                repo.close()
            if top and self.commit:
                files = [self.root / name for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore")]
                self.commit_files(top, files, {}, "Start versioning data with DVC")

    def store(
        self,
        path: str | Path,
        *,
        source: Path | None = None,
        imported_from: Mapping[str, Any] | None = None,
        **facts: Any,
    ) -> Dataset:
        """Make the content of `path`, a file or folder, a version: cache it, commit its pointer, push it, verify it.

        Bytes that are the current version already change nothing: no commit, no push. The record also goes into the
        pointer file's ``meta`` field, where it survives Dagster. Content that an earlier call could not push, because
        it was killed or the remote failed, is pushed, too.

        Args:
            path: Path of the dataset, relative to the repository.
            source: File or folder on the same disk, moved to `path` first, under the lock.
            imported_from: Dependency of an import, as DVC writes it.
            facts: Further fields of :class:`Dataset`, such as ``rows``, ``upstream`` or ``dagster_run_id``.

        Raises:
            DatasetError: the lock is held too long, git or DVC refuses, or the remote does not take the content.
        """
        target = self.locate(path)
        name = target.relative_to(self.root).as_posix()
        rev = ""
        with self.open(locked=False) as repo, ExitStack() as until_pushed:
            remote = objects.remote_url(repo, self.remote) if self.push else ""
            with locks.locked(repo, self.lock_timeout):
                if source:
                    pointers.move(repo, source, target)
                md5, size = pointers.cache(repo, target, imported=imported_from is not None)
                if self.push:
                    until_pushed.enter_context(push_journal.noted(repo, md5, size, self.remote))
                record = Dataset(path=name, md5=md5, repo=str(self.root), remote=remote, bytes=size, **facts)
                pointers.write_pointer(repo, target, record, imported_from=imported_from)
                if top := self._top(repo):
                    pointer = pointers.pointer_of(target)
                    rev = self.commit_files(top, [pointer], pointers.ignored(target), _message(record))
            if self.push:
                objects.push(repo, md5, size, self.remote)
                push_journal.push_noted(repo)
        return dataclasses.replace(record, rev=rev)

    def locate(self, path: str | Path) -> Path:
        """The absolute path of a dataset.

        Raises:
            DatasetError: it lies outside the repository.
        """
        target = Path(os.path.normpath(self.root / path))
        if not target.is_relative_to(self.root) or target == self.root:
            raise DatasetError(f"{path} lies outside the DVC repository {self.root}. Use a path relative to it.")
        return target

    def pointer(self, path: str | Path, *, rev: str | None = None) -> dict[str, Any]:
        """The content of a dataset's ``.dvc`` file, current or at a git revision. Needs no cache and no remote.

        For the output of a stage, it is the entry in ``dvc.lock``, with the name of the ``stage``.

        Raises:
            DatasetError: there is no such pointer, or it cannot be read.
        """
        target = self.locate(path)
        file = pointers.pointer_of(target)
        if rev is None:
            text = file.read_bytes() if file.exists() else None
        else:
            output = git(self.root, "show", f"{rev}:./{file.relative_to(self.root).as_posix()}")
            text = output.stdout if output.returncode == 0 else None
        where = f"{file}{f' at revision {rev}' if rev else ''}"
        if text is None:
            if locked := locked_out(self.root, target.relative_to(self.root).as_posix(), rev=rev):
                return {"stage": locked.stage, "outs": [dict(locked.out)]}
            raise DatasetError(f"There is no {where}. Materialize {target.name}, or `dvc add` and commit it.")
        content = pointers.parse_pointer(text)
        if content is None:
            raise DatasetError(f"{where} is not a DVC pointer file. Restore it from git.")
        return content

    def data_version(self, path: str | Path, *, rev: str | None = None) -> str:
        """The content hash that a dataset's pointer names, currently or at a git revision."""
        return self.pointer(path, rev=rev)["outs"][0]["md5"]

    def revision(self, path: str | Path, *, rev: str = "HEAD") -> str:
        """The git commit that gave a dataset's pointer the content it has at `rev`; empty without git."""
        name = self.locate(path).relative_to(self.root).as_posix()

        def newest(*selection: str) -> str:
            return git(self.root, "log", "-1", "--format=%H", *selection).stdout.decode().strip()

        commit_hash = newest(rev, "--", f"./{name}.dvc")
        if not commit_hash and (locked := locked_out(self.root, name, rev=rev)):
            return newest(f"-S{locked.out['md5']}", rev, "--", f"./{locked.file}")
        return commit_hash

    def read_path(self, path: str | Path, *, md5: str | None = None, rev: str | None = None) -> Path:
        """A local file or folder with the content of any version: by hash, by git revision, else the current one.

        It is the dataset's own path where that holds the version, otherwise a read-only copy (a link into DVC's cache
        where possible), fetched from the remote if necessary.

        Raises:
            DatasetError: the version is in neither the workspace, the cache nor the remote.
        """
        target = self.locate(path)
        pointer = pointers.read_pointer(target) if md5 else self.pointer(path, rev=rev)
        out = pointer["outs"][0] if pointer else {}
        md5 = md5 or str(out["md5"])
        with self.open(locked=False) as repo:
            if target.exists() and pointers.content_hash(repo, target) == md5:
                return target
            if not objects.cached(repo, md5):
                size = out.get("size") if out.get("md5") == md5 else None
                objects.pull(repo, md5, self.remote, path=str(path), size=size)
            return objects.checkout(repo, md5, name=target.name)

    def load(self, path: str | Path, kind: Any = None, *, md5: str | None = None, rev: str | None = None) -> Any:
        """The content of any version as a `kind`: a frame or table type, ``bytes``, ``str`` or ``Path``.

            dvc.load("raw/flights.parquet", pl.LazyFrame, rev="v1.0")

        Raises:
            DatasetError: the version is not available, or cannot be read as `kind`.
        """
        return file_formats.read([self.read_path(path, md5=md5, rev=rev)], kind, name=Path(path).name)

    @property
    def _remote(self) -> str:
        return self.remote or "storage"

    def _top(self, repo: "Repo") -> Path | None:
        # A repository made with no_scm may lie in a checkout of something else, which stays untouched.
        versioned = self.commit and not isinstance(repo.scm, extra("dvc.scm").NoSCM)
        return Path(repo.scm.root_dir) if versioned else None

    def commit_files(self, top: Path, files: Sequence[Path], edits: Mapping[Path, Edit], message: str) -> str:
        """Commit `files` as they are on disk, and `edits`, in the name of this resource's author; returns the commit.

        Raises:
            DatasetError: git refuses, or another process holds its lock for `lock_timeout` seconds.
        """
        author = {"NAME": self.author_name, "EMAIL": self.author_email}
        if not git(top, "config", "user.email").stdout and "GIT_COMMITTER_EMAIL" not in os.environ:
            # A new machine has no identity configured, and git would refuse.
            author = {"NAME": author["NAME"] or "dagster-mlops", "EMAIL": author["EMAIL"] or "dagster-mlops@localhost"}
        identity = {
            f"GIT_{who}_{part}": value for who in ("AUTHOR", "COMMITTER") for part, value in author.items() if value
        }
        paths = [file.relative_to(top).as_posix() for file in (*files, *edits)]
        below = dict(zip(paths[len(files) :], edits.values(), strict=True))
        new = commit(top, paths[: len(files)], below, message=message, author=identity, wait=self.lock_timeout)
        return new or run(top, "log", "-1", "--format=%H", "--", paths[0]).decode().strip()


def _message(record: Dataset) -> str:
    trailers = {
        "Dagster-Asset": record.dagster_asset,
        "Dagster-Partition": record.dagster_partition,
        "Dagster-Run": record.dagster_run_id,
    }
    lines = [f"{name}: {value}" for name, value in trailers.items() if value]
    return "\n".join([f"Store {record.path} at {record.md5[:8]}", "", *lines]).rstrip() + "\n"
