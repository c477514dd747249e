"""A git + DVC repository: stores datasets, and reads back any version of them."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pydantic import Field

from dagster_mlops.core.extras import extra
from dagster_mlops.core.git import git, plain_revision
from dagster_mlops.core.resources import ToolResource
from dagster_mlops.core.site_cache import site_cache_option
from dagster_mlops.dvc.lazy import Repo
from dagster_mlops.dvc.store import file_formats, lock_files, objects, pointers, remotes, repository
from dagster_mlops.dvc.store.contents import candidates, content_of
from dagster_mlops.dvc.store.git_commit import Edit, commit, message, run, toplevel
from dagster_mlops.dvc.store.git_content import checkout_from_git
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Dataset


class DvcResource(ToolResource):
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
    def open(self, *, locked: bool = True) -> Iterator[Repo]:
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
        with closing(repo), repository.locked(repo, self.lock_timeout) if locked else nullcontext():
            remotes.bound_waits(repo)
            yield repo

    def config(self) -> dict[str, Any]:
        """The fields as overrides of the repository's DVC configuration, for ``Repo(config=…)``. They may hold secrets.

        Raises:
            DatasetError: an environment variable named in `remote_config` is not set.
        """
        options = remotes.in_memory(self.remote_config) | ({"url": self.remote_url} if self.remote_url else {})
        core = site_cache_option(self.root)
        if not options:
            return {"core": core}
        name = self.remote
        if not name and not self.remote_url:
            folder = extra("dvc.repo").Repo.find_dvc_dir(str(self.root))
            name = extra("dvc.config").Config(folder)["core"].get("remote")
        return {"remote": {(name := name or self._remote): options}, "core": {"remote": name, **core}}

    def init(self, remote_url: str | None = None) -> None:
        """Create what is missing of the git repository, the DVC repository and its default remote.

        A folder inside a checkout becomes a DVC subproject of it, unless the checkout ignores the folder: then it gets
        its own git repository. Without git, DVC works, but pointers have no history. The remote goes into
        ``.dvc/config.local``: DVC reads ``.dvc/config`` at the revision of a request, where a remote that was added
        later is unknown.
        """
        remote_url = remote_url or self.remote_url
        self.root.mkdir(parents=True, exist_ok=True)
        with repository.alone(self.root, self.lock_timeout):
            top = toplevel(self.root)
            if top is None or (top != self.root and git(top, "check-ignore", "-q", str(self.root)).returncode == 0):
                top = self.root if git(self.root, "init", "-q").returncode == 0 else None
            if remote_url and "://" not in remote_url:
                remote_url = str(Path(remote_url).expanduser().absolute())
                Path(remote_url).mkdir(parents=True, exist_ok=True)
            remote = (self._remote, remote_url) if remote_url else None
            repository.create(self.root, versioned=top is not None, remote=remote)
            if remote_url:
                core = site_cache_option(self.root)
                with closing(extra("dvc.repo").Repo(str(self.root), config={"core": core})) as repo:
                    url = repo.config["remote"].get(self._remote, {}).get("url")
                    if repo.config["core"].get("remote") != self._remote or remote_url != url:
                        with repository.locked(repo, self.lock_timeout):
                            repository.set_remote(self.root, self._remote, remote_url)
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
        target, name, rev = self.locate(path), self.name_of(path), ""
        with self.open(locked=False) as repo, ExitStack() as until_pushed:
            with repository.locked(repo, self.lock_timeout):
                before = pointers.claim(repo, target, imported=imported_from is not None)
                to, is_pushed = self.place_of(before)
                remote = objects.remote_url(repo, to) if self.push and is_pushed else ""
                if source:
                    pointers.move(repo, source, target)
                content, size = pointers.cache(repo, target, before)
                if remote:
                    until_pushed.enter_context(objects.noted(repo, content, size, to))
                facts |= {"md5": content.md5, "bytes": size, "remote": remote}
                record = Dataset(path=name, repo=str(self.root), **facts)
                pointers.write_pointer(repo, target, content, record, imported_from=imported_from)
                if top := self.commits_to(repo):
                    text = message(f"Store {name} at {content.md5[:8]}", vars(record))
                    rev = self.commit_files(top, [pointers.pointer_of(target)], pointers.ignored(target), text)
            if remote:
                objects.push(repo, content, size, to)
            if self.push:
                objects.push_noted(repo)
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

    def name_of(self, path: str | Path) -> str:
        """The path of a dataset, relative to the repository, as git writes it."""
        return self.locate(path).relative_to(self.root).as_posix()

    def pointer(self, path: str | Path, *, rev: str | None = None) -> dict[str, Any]:
        """The content of a dataset's ``.dvc`` file, current or at a git revision. Needs no cache and no remote.

        For the output of a stage, it is the entry in ``dvc.lock``, with the name of the ``stage``.

        Raises:
            DatasetError: there is no such pointer, or it cannot be read.
        """
        name = self.name_of(path)
        text = pointers.content_at(self.root, f"{name}.dvc", rev)
        where = f"{self.root / name}.dvc{f' at revision {rev}' if rev else ''}"
        if text is None:
            if locked := lock_files.locked_out(self.root, name, rev=rev):
                return {"stage": locked.stage, "outs": [dict(locked.out)]}
            raise DatasetError(f"There is no {where}. Materialize {Path(name).name}, or `dvc add` and commit it.")
        content = pointers.parse_pointer(text)
        if content is None:
            raise DatasetError(f"{where} is not a DVC pointer file. Restore it from git.")
        return content

    def pointer_if_any(self, path: str | Path) -> dict[str, Any] | None:
        """The current pointer; None for a dataset that was never stored here, or removed."""
        with suppress(DatasetError):
            return self.pointer(path)

    def data_version(self, path: str | Path, *, rev: str | None = None) -> str:
        """The content hash that a dataset's pointer names, currently or at a git revision."""
        return self.pointer(path, rev=rev)["outs"][0]["md5"]

    def place_of(self, pointer: Mapping[str, Any] | None) -> tuple[str | None, bool]:
        """The remote that a pointer's output names, else this resource's, and whether it may be pushed."""
        [out] = (pointer or {}).get("outs", [{}])[:1]
        return out.get("remote") or self.remote, out.get("push", True)

    def revision(self, path: str | Path, *, rev: str = "HEAD") -> str:
        """The git commit that gave a dataset's pointer the content it has at `rev`; empty without git."""
        name, rev = self.name_of(path), plain_revision(rev, error=DatasetError)

        def newest(*selection: str) -> str:
            return git(self.root, "log", "-1", "--format=%H", *selection).stdout.decode().strip()

        commit_hash = newest(rev, "--", f"./{name}.dvc")
        if not commit_hash and (locked := lock_files.locked_out(self.root, name, rev=rev)):
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
        pointer = self.pointer_if_any(path) if md5 else self.pointer(path, rev=rev)
        [out] = pointer["outs"] if pointer else [{}]
        contents = [content_of(out)] if out and md5 in (None, out["md5"]) else candidates(str(md5))
        with self.open(locked=False) as repo:
            for content in contents:
                # By one algorithm only: DVC remembers one hash of each file.
                is_first = content is contents[0] and target.exists()
                if is_first and pointers.content_hash(repo, target, content.algorithm) == content.md5:
                    return target
                if objects.cached(repo, content):
                    return objects.checkout(repo, content, name=target.name)
            if copy := checkout_from_git(repo, self.name_of(path), contents[0].md5):
                return copy
            content = objects.pull(repo, contents, self.place_of(pointer)[0], path=str(path))
            return objects.checkout(repo, content, name=target.name)

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

    def commits_to(self, repo: Repo) -> Path | None:
        """The checkout in which pointers are committed, if any."""
        # A repository made with no_scm may lie in a checkout of something else, which stays untouched.
        versioned = self.commit and not isinstance(repo.scm, extra("dvc.scm").NoSCM)
        return Path(repo.scm.root_dir) if versioned else None

    def commit_files(self, top: Path, files: Sequence[Path], edits: Mapping[Path, Edit], message: str) -> str:
        """Commit `files` as they are on disk, and `edits`, in the name of this resource's author; returns the commit.

        Raises:
            DatasetError: git refuses, or another process holds its lock for `lock_timeout` seconds.
        """
        name, email = self.author_name, self.author_email
        if not git(top, "config", "user.email").stdout and "GIT_COMMITTER_EMAIL" not in os.environ:
            # A new machine has no identity configured, and git would refuse.
            name, email = name or "dagster-mlops", email or "dagster-mlops@localhost"
        parts = {"AUTHOR_NAME": name, "AUTHOR_EMAIL": email, "COMMITTER_NAME": name, "COMMITTER_EMAIL": email}
        author = {f"GIT_{part}": value for part, value in parts.items() if value}
        paths = [file.relative_to(top).as_posix() for file in files]
        below = {file.relative_to(top).as_posix(): edit for file, edit in edits.items()}
        new = commit(top, paths, below, message=message, author=author, wait=self.lock_timeout)
        return new or run(top, "log", "-1", "--format=%H", "--", [*paths, *below][0]).decode().strip()
