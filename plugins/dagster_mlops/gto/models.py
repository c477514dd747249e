"""Versions, aliases, notes and files of models in the tags and refs of a git repository."""

import dataclasses
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.git import git
from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import ModelVersionError, RegistryError
from dagster_mlops.provenance import NAMESPACE, ModelVersion, Record, Ref, mask_credentials
from dagster_mlops.tools import StoredModel

if TYPE_CHECKING:
    from gto.base import Artifact, Version
    from gto.registry import GitRegistry

RECORD = f"{NAMESPACE}.record"
_REFS = f"refs/{NAMESPACE}"
_RIVAL_TIMEOUT = 2.0  # seconds
_PATIENCE = 3  # seconds
_UNKNOWN_USER = "dagster-mlops <dagster-mlops@localhost>"


class GtoModels:
    """The registry in a git repository, shared by a remote where one is named."""

    tool = "gto"

    def __init__(self, registry: "GitRegistry", repo: Path, remote: str | None, timeout: float) -> None:
        self.registry, self.repo, self.remote, self.timeout = registry, repo, remote, timeout

    def synchronize(self) -> None:
        """Fetch the tags and refs of the registry from the remote.

        Raises:
            RegistryError: the remote cannot be read, or has another tag by a name that is taken here.
        """
        if self.remote:
            self._git("fetch", "--quiet", self.remote, "refs/tags/*:refs/tags/*", f"+{_REFS}/*:{_REFS}/*")

    def register(self, name: str, *, rev: str, version: str | None, **facts: Any) -> ModelVersion:
        """Make a commit a version, unless it is one, and keep its record with it."""
        commit = self._git("rev-parse", "--verify", f"{rev}^{{commit}}").decode().strip()
        entity = next((entity for entity in self._entities(name).values() if entity.commit_hexsha == commit), None)
        if entity is None:
            entity = self._entity(name, self.registry.register(name, commit, version=version, simple=True).version)
        upstream = (*facts.pop("upstream"), self._code(entity))
        record = dataclasses.replace(self._bare(name, entity), **facts, upstream=upstream)
        tags = f"refs/tags/{_tag(name)}@{entity.version}*"  # GTO may have numbered it
        self._push(f"{tags}:{tags}")
        self.note(record, RECORD, record.to_json())
        return record

    def version(self, name: str, which: str = "") -> ModelVersion:
        entity = self._entity(name, which)
        record = self._bare(name, entity)
        text = self.notes(record).get(RECORD)
        known = Record.from_json(text) if text else None
        if isinstance(known, ModelVersion):
            record = dataclasses.replace(known, tracking_uri=record.tracking_uri)
        stages = self._artifact(name).unique_stages
        held = [stage for stage in stages if self._holder(name, stage) == entity.version]
        return dataclasses.replace(record, aliases=tuple(sorted(held)))

    def metrics(self, version: ModelVersion) -> Mapping[str, float]:
        return self.version(version.name, version.version).metrics

    def move(self, name: str, alias: str, to: str, *, expected: str) -> bool:
        self.synchronize()
        # The number makes it atomic: a rival who saw the same holder takes the same one, and git creates a tag once.
        # It is read before the holder, so that no rival comes in between unseen.
        number, latest = self._last_number_and_time(name)
        if self._holder(name, alias) != expected:
            return False
        changes = [(f"{_tag(name)}#{alias}#{number + 1}", self._entity(name, to).commit_hexsha)]
        if expected:  # in GTO several versions may be in a stage, an alias has one
            changes.append((f"{_tag(name)}#{alias}!#{number + 2}", self._entity(name, expected).commit_hexsha))
        # GTO orders tags by their time, in whole seconds: wait for the next one. Of a clock that is behind, go on.
        if 0 <= latest - int(time.time()) < _PATIENCE:
            time.sleep(latest + 1 - time.time())
        when = max(int(time.time()), latest + 1)
        tags = {f"refs/tags/{tag}": self._tag_object(tag, commit, when) for tag, commit in changes}
        if self.remote:
            try:
                self._push(*(f"{object_id}:{ref}" for ref, object_id in tags.items()))
            except RegistryError:
                self.synchronize()
                if self._holder(name, alias) == expected:
                    raise
                return False
        # After a push another process of this machine may have fetched them already.
        verb = "update" if self.remote else "create"
        lines = "".join(f"{verb} {ref} {object_id}\n" for ref, object_id in tags.items())
        created = git(self.repo, "update-ref", "--stdin", stdin=lines.encode(), timeout=self.timeout)
        if created.returncode == 0:
            return True
        failure = RegistryError(f"git in {self.repo} does not create {', '.join(tags)}: {_text(created.stderr)}")
        # A rival holds git's lock on the tag before it can be seen.
        wait_while(lambda: self._holder(name, alias) == expected, timeout=_RIVAL_TIMEOUT, error=lambda _: failure)
        return False

    def notes(self, version: ModelVersion) -> Mapping[str, str]:
        prefix = f"{self._place(version)}/notes/"
        names = self._git("for-each-ref", "--format=%(refname)", prefix).decode().split()
        return {name.removeprefix(prefix): self._git("cat-file", "blob", name).decode() for name in names}

    def note(self, version: ModelVersion, key: str, text: str) -> None:
        self._keep(f"{self._place(version)}/notes/{key}", text.encode())

    def write_file(self, version: ModelVersion, path: str, content: bytes) -> None:
        self._keep(f"{self._place(version)}/files/{path}", content)

    def read_file(self, version: ModelVersion, path: str) -> bytes:
        try:
            return self._git("cat-file", "blob", f"{self._place(version)}/files/{path}")
        except RegistryError as error:
            raise ModelVersionError(str(error)) from error

    def fetch(self, version: ModelVersion, folder: Path) -> StoredModel:
        entity = self._entity(version.name, version.version)
        described = extra("gto.api").describe(str(self.repo), version.name, rev=entity.commit_hexsha)
        path = described.path if described and described.path else version.name
        try:
            # It reads both what git holds and what DVC tracks at that commit.
            files = extra("dvc.api", extra="gto").DVCFileSystem(str(self.repo), rev=entity.commit_hexsha)
            files.get(path, str(folder / "model"), recursive=True)
            return StoredModel.read(folder / "model", version)
        except (OSError, extra("dvc.exceptions", extra="gto").DvcException) as error:
            raise ModelVersionError(
                f"the files of version {version.version} of {version.name!r} cannot be read: {path} at commit "
                f"{entity.commit_hexsha[:12]} of {self.repo}: {mask_credentials(str(error))[:300]}. An artifact's path "
                "is in artifacts.yaml or dvc.yaml: `gto annotate`."
            ) from error

    def url(self, version: ModelVersion) -> str:
        return ""

    def _entities(self, name: str) -> "dict[str, Version]":
        """The registered versions of a model, the newest first."""
        return {version.version: version for version in self._artifact(name).get_versions()}

    def _entity(self, name: str, which: str) -> "Version":
        versions = self._entities(name)
        version = self._holder(name, which[1:]) if which.startswith("@") else which or next(iter(versions), "")
        if version not in versions:
            missing = f"alias {which[1:]!r} (a stage)" if which.startswith("@") else f"version {which}".strip()
            raise ModelVersionError(
                f"{name!r} has no {missing} in {self.repo}; there are {', '.join(versions) or 'no versions'}. Register "
                f"one with `gto register {name}`, or fetch the tags."
            )
        return versions[version]

    def _artifact(self, name: str) -> "Artifact":
        """The versions and stages of a model as its tags say.

        GTO's own `get_state` also reads the artifacts.yaml of every commit, by one YAML parser that all threads share.
        """
        state = self.registry.version_manager.update_state(extra("gto.base").BaseRegistryState())
        return self.registry.stage_manager.update_state(state).find_artifact(name, create_new=True)

    def _holder(self, name: str, stage: str) -> str:
        by_time = extra("gto.constants").VersionSort.Timestamp
        assigned = self._artifact(name).get_vstages(registered_only=True, versions_per_stage=-1, sort=by_time)
        return assigned[stage][0].version if assigned.get(stage) else ""

    def _last_number_and_time(self, name: str) -> tuple[int, int]:
        """The greatest number and the latest time among the tags of a model."""
        form = "--format=%(refname:strip=2) %(creatordate:unix)"
        tags = [line.rsplit(" ", 1) for line in self._git("for-each-ref", form, "refs/tags").decode().splitlines()]
        own = [(tag, int(when)) for tag, when in tags if re.split("[@#]", tag)[0] == _tag(name)]
        numbers = [int(number[1]) for tag, _ in own if (number := re.search(r"#(\d+)$", tag))]
        return max(numbers, default=0), max((when for _, when in own), default=0)

    def _tag_object(self, tag: str, commit: str, when: int) -> str:
        identity = git(self.repo, "var", "GIT_COMMITTER_IDENT", timeout=self.timeout)
        user = identity.stdout.decode().rsplit(" ", 2)[0] if identity.returncode == 0 else _UNKNOWN_USER
        text = f"object {commit}\ntype commit\ntag {tag}\ntagger {user} {when} +0000\n\nPromoted by dagster-mlops\n"
        return self._git("mktag", stdin=text.encode()).decode().strip()

    def _keep(self, ref: str, content: bytes) -> None:
        blob = self._git("hash-object", "-w", "--stdin", stdin=content).decode().strip()
        self._push(f"+{blob}:{ref}")
        self._git("update-ref", ref, blob)

    def _push(self, *refspecs: str) -> None:
        if self.remote:
            self._git("push", "--quiet", "--atomic", self.remote, *refspecs)

    def _bare(self, name: str, entity: "Version") -> ModelVersion:
        return ModelVersion(
            tool="gto",
            name=name,
            version=entity.version,
            run_id="",
            tracking_uri=str(self.repo),
            upstream=(self._code(entity),),
        )

    def _code(self, entity: "Version") -> Ref:
        return Ref("git", "commit", entity.commit_hexsha, at=str(self.repo))

    def _place(self, version: ModelVersion) -> str:
        return f"{_REFS}/{_tag(version.name)}@{version.version}"

    def _git(self, *arguments: str, stdin: bytes = b"") -> bytes:
        process = git(self.repo, *arguments, stdin=stdin, timeout=self.timeout)
        if process.returncode:
            raise RegistryError(f"`git {arguments[0]}` in {self.repo} failed: {_text(process.stderr)}")
        return process.stdout


def _tag(name: str) -> str:
    """The name of a model as it stands in a tag, where GTO writes = for a colon."""
    return name.replace(":", "=")


def _text(stderr: bytes) -> str:
    return mask_credentials(stderr.decode(errors="replace").strip())[-500:]
