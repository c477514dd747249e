"""Versions, aliases, notes and files of models in the tags and refs of a git repository."""

import dataclasses
import re
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.git import git
from dagster_mlops.core.inside import files_below
from dagster_mlops.core.notes import read_note
from dagster_mlops.core.site_cache import site_cache_option
from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import ModelVersionError, ProvenanceError, RegistryError
from dagster_mlops.gto.history import REFS, HistoryRefs, tag_name
from dagster_mlops.provenance import NAMESPACE, ModelVersion, Record, Ref, mask_credentials
from dagster_mlops.tools import StoredModel

if TYPE_CHECKING:
    from gto.base import Artifact, Version
    from gto.registry import GitRegistry

    from dagster_mlops.gto.resource import GtoResource

RECORD = f"{NAMESPACE}.record"
_RIVAL_TIMEOUT = 2.0  # seconds
_PATIENCE = 3  # seconds
_UNKNOWN_USER = "dagster-mlops <dagster-mlops@localhost>"


class GtoModels(HistoryRefs):
    """The registry in a git repository, shared by a remote where one is named."""

    tool = "gto"

    def __init__(self, resource: "GtoResource", registry: "GitRegistry") -> None:
        self.resource, self.registry = resource, registry
        self.repo, self.remote, self.timeout = Path(resource.repo).absolute(), resource.remote, resource.timeout

    def synchronize(self) -> None:
        """Fetch the tags and refs of the registry from the remote.

        Raises:
            RegistryError: the remote cannot be read, or has another tag by a name that is taken here.
        """
        if not self.remote:
            return
        try:
            # Not --quiet: git would be silent about tags that it rejects.
            self._git("fetch", "--", self.remote, "refs/tags/*:refs/tags/*", f"+{REFS}/*:{REFS}/*")
        except RegistryError as error:
            remotes = ", ".join(self._git("remote").decode().split()) or "none"
            raise RegistryError(
                f"the remote {self.remote!r} of the model registry cannot be read (known remotes: {remotes}): {error}\n"
                f"Correct remote= or its access until `git -C {self.repo} fetch {self.remote}` works. Of a tag that "
                f"the remote has with other content, remove ours: `git -C {self.repo} tag -d TAG`."
            ) from error

    def register(self, name: str, *, rev: str, version: str | None, **facts: Any) -> ModelVersion:
        """Make a commit a version, unless it is one, and keep its record with it."""
        commit = self._commit(rev)
        entity = self._registered(name, commit, version)
        upstream = (*facts.pop("upstream"), self._code(entity))
        record = dataclasses.replace(self._bare(name, entity), **facts, upstream=upstream)
        self.note(record, RECORD, record.to_json())
        return record

    def version(self, name: str, which: str = "") -> ModelVersion:
        return self._version(name, which, self._lenient)

    def recorded(self, name: str, version: str) -> ModelVersion:
        """The record of a version, for lineage.

        Raises:
            ProvenanceError: it cannot be read.
        """
        return self._version(name, version, self._read_record)

    def _lenient(self, text: str, bare: ModelVersion) -> ModelVersion:
        of = f"record of version {bare.version} of {bare.name!r}"
        return read_note(text, lambda text: self._read_record(text, bare), of=of, default=bare)

    def _version(self, name: str, which: str, read: Callable[[str, ModelVersion], ModelVersion]) -> ModelVersion:
        artifact = self._artifact(name)
        entity = self._entity(artifact, which)
        record = self._bare(name, entity)
        if text := self.notes(record).get(RECORD):
            record = read(text, record)
        held = [stage for stage in artifact.unique_stages if _holder(artifact, stage) == entity.version]
        return dataclasses.replace(record, aliases=tuple(sorted(held)))

    def bare(self, name: str, version: str) -> ModelVersion:
        """The record of a version as its tag alone gives it: name, number and commit."""
        return self._bare(name, self._entity(self._artifact(name), version))

    def metrics(self, version: ModelVersion) -> Mapping[str, float]:
        return self.version(version.name, version.version).metrics

    def move(self, name: str, alias: str, to: str, *, expected: str) -> bool:
        self.synchronize()
        self.registry.config.assert_stage(alias)
        # The number makes it atomic: a rival who saw the same holder takes the same one, and git creates a tag once.
        # It is read before the holder, so that no rival comes in between unseen.
        number, latest = self._last_number_and_time(name)
        artifact = self._artifact(name)
        if _holder(artifact, alias) != expected:
            return False
        if to == expected:
            return True
        changes = {f"{tag_name(name)}#{alias}#{number + 1}": self._entity(artifact, to).commit_hexsha}
        if expected:  # in GTO several versions may be in a stage, an alias has one
            changes[f"{tag_name(name)}#{alias}!#{number + 2}"] = self._entity(artifact, expected).commit_hexsha
        # GTO orders tags by their time, in whole seconds: wait for the next one. Of a clock that is behind, go on.
        if 0 <= latest - int(time.time()) < _PATIENCE:
            time.sleep(latest + 1 - time.time())
        when = max(int(time.time()), latest + 1)
        # Git takes a tag that is there already for created: that of a rival with the same wish is another one.
        try:
            self._create_tags(changes, when, f"Promoted by dagster-mlops ({uuid.uuid4().hex})")
        except RegistryError as refusal:
            failure = refusal

            def unmoved() -> bool:
                self.synchronize()
                return _holder(self._artifact(name), alias) == expected

            # Without a remote, a rival holds git's lock on the tag before it can be seen.
            wait_while(unmoved, timeout=0 if self.remote else _RIVAL_TIMEOUT, error=lambda _: failure)
            return False
        return True

    def notes(self, version: ModelVersion) -> Mapping[str, str]:
        prefix = f"{self._place(version)}/notes/"
        names = self._git("for-each-ref", "--format=%(refname)", prefix).decode().split()
        return {
            name.removeprefix(prefix): self._git("cat-file", "blob", name).decode(errors="replace") for name in names
        }

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
        entity = self._entity(self._artifact(version.name), version.version)
        described = extra("gto.api").describe(str(self.repo), version.name, rev=entity.commit_hexsha)
        path = described.path if described and described.path else version.name
        try:
            # It reads both what git holds and what DVC tracks at that commit.
            open_files, core = extra("dvc.api", extra="gto").DVCFileSystem, site_cache_option(Path(self.repo))
            files = open_files(str(self.repo), rev=entity.commit_hexsha, config={"core": core})
            files_below(files, path, error=ModelVersionError)
            files.get(path, str(folder / "model"), recursive=True)
            return self.resource.stored(folder / "model", version)
        except (OSError, extra("dvc.exceptions", extra="gto").DvcException) as error:
            raise ModelVersionError(
                f"the files of version {version.version} of {version.name!r} cannot be read: {path} at commit "
                f"{entity.commit_hexsha[:12]} of {self.repo}: {mask_credentials(str(error))[:300]}. An artifact's path "
                "is in artifacts.yaml or dvc.yaml: `gto annotate`."
            ) from error

    def url(self, version: ModelVersion) -> str:
        return ""

    def _registered(self, name: str, commit: str, version: str | None) -> "Version":
        """The version that a commit is, made one unless it is.

        It is not GTO's `register`, which creates the tag here before the remote has accepted it.
        """
        extra("gto.constants").assert_fullname_is_valid(name)
        semver = extra("gto.versions").SemVer
        numbered = [entity for entity in self._artifact(name).versions if entity.is_registered]
        registered = next((entity for entity in numbered if entity.commit_hexsha == commit), None)
        if registered and (not registered.is_active or version not in (None, registered.version)):
            raise RegistryError(
                f"commit {commit[:12]} is version {registered.version} of {name!r} already"
                f"{', which was deregistered' * (not registered.is_active)}, and in GTO a commit is one version. "
                "Commit the new files first, or leave out version=."
            )
        if registered:
            tag = f"refs/tags/{registered.registrations[-1].tag}"  # which `gto register` may not have pushed
            self._push(f"{tag}:{tag}")
            return registered
        if version is None:
            newest = max((semver(entity.version) for entity in numbered), default=None)
            version = str((newest.bump(bump_patch=True) if newest else semver.get_minimal()).version)
        semver(version)
        if holder := next((entity for entity in numbered if entity.version == version), None):
            raise RegistryError(
                f"version {version} of {name!r} is commit {holder.commit_hexsha[:12]}, and not {commit[:12]}. Take "
                "another number, or leave out version=."
            )
        message = f"Registering artifact {name} version {version}"
        self._create_tags({f"{tag_name(name)}@{version}": commit}, int(time.time()), message)
        return self._entity(self._artifact(name), version)

    def _entity(self, artifact: "Artifact", which: str) -> "Version":
        versions = {version.version: version for version in artifact.get_versions()}  # the newest first
        if which.startswith("@"):
            self.registry.config.assert_stage(which[1:])
        version = _holder(artifact, which[1:]) if which.startswith("@") else which or next(iter(versions), "")
        if version not in versions:
            name = artifact.artifact
            missing = f"alias {which[1:]!r} (a stage)" if which.startswith("@") else f"version {which}".strip()
            raise ModelVersionError(
                f"{name!r} has no {missing} in {self.repo}; there are {', '.join(versions) or 'no versions'}. Register "
                f"one with `gto register {name}`, or fetch the tags. GTO sees annotated tags only."
            )
        return versions[version]

    def _artifact(self, name: str) -> "Artifact":
        """The versions and stages of a model as its own tags say, in GTO's order: by time, versions first.

        GTO's own `get_state` reads the tags of all models, and the artifacts.yaml of every commit by one YAML parser
        that all threads share.
        """
        tags, managers = extra("gto.tag"), (self.registry.version_manager, self.registry.stage_manager)
        artifact = extra("gto.base").Artifact(artifact=name, versions=[])
        try:
            for manager in managers:
                for tag in tags.find(scm=self.registry.scm, name=name, action=manager.actions):
                    tags.index_tag(artifact, tag)
        except extra("gto.exceptions").ManyVersions as error:
            raise RegistryError(
                f"GTO in {self.repo}: {error} Remove one of these tags: `git tag -d TAG`, and from the remote too."
            ) from error
        return artifact

    def _last_number_and_time(self, name: str) -> tuple[int, int]:
        """The greatest number and the latest time among the tags of a model."""
        form = "--format=%(refname:strip=2) %(creatordate:unix)"
        tags = [line.rsplit(" ", 1) for line in self._git("for-each-ref", form, "refs/tags").decode().splitlines()]
        model_tags = [(tag, int(when)) for tag, when in tags if re.split("[@#]", tag)[0] == tag_name(name)]
        return max((_number(tag) for tag, _ in model_tags), default=0), max((when for _, when in model_tags), default=0)

    def _create_tags(self, commits: Mapping[str, str], when: int, message: str) -> None:
        """Create all of the tags or none: first on the remote, which decides.

        Raises:
            RegistryError: the remote refuses them, or one exists.
        """
        tags = {f"refs/tags/{tag}": self._tag_object(tag, commit, when, message) for tag, commit in commits.items()}
        self._push(*(f"{object_id}:{ref}" for ref, object_id in tags.items()))
        # After a push another process of this machine may have fetched them already.
        verb = "update" if self.remote else "create"
        lines = "".join(f"{verb} {ref} {object_id}\n" for ref, object_id in tags.items())
        self._git("update-ref", "--stdin", stdin=lines.encode())

    def _tag_object(self, tag: str, commit: str, when: int, message: str) -> str:
        identity = git(self.repo, "var", "GIT_COMMITTER_IDENT", timeout=self.timeout)
        user = identity.stdout.decode().rsplit(" ", 2)[0] if identity.returncode == 0 else _UNKNOWN_USER
        text = f"object {commit}\ntype commit\ntag {tag}\ntagger {user} {when} +0000\n\n{message}\n"
        return self._git("mktag", stdin=text.encode()).decode().strip()

    def _push(self, *refspecs: str) -> None:
        if not self.remote:
            return
        try:
            self._git("push", "--quiet", "--atomic", "--", self.remote, *refspecs)
        except RegistryError as error:
            raise RegistryError(
                f"the remote {self.remote!r} of the model registry refuses this: {error}\nGive the user that "
                f"Dagster runs as the right to push refs/tags/* and {REFS}/*, then run this again."
            ) from error

    def _bare(self, name: str, entity: "Version") -> ModelVersion:
        return ModelVersion(
            tool="gto",
            name=name,
            version=entity.version,
            run_id="",
            tracking_uri=str(self.repo),
            upstream=(self._code(entity),),
        )

    def _read_record(self, text: str, bare: ModelVersion) -> ModelVersion:
        """The record that was kept with a version, with the places of this clone."""
        try:
            record = Record.from_json(text)
        except ProvenanceError as error:
            raise ProvenanceError(
                f"the record of version {bare.version} of {bare.name!r} cannot be read: {error} Register its commit "
                f"again, which writes it anew; it is {self._place(bare)}/notes/{RECORD} in {self.repo}."
            ) from error
        if not isinstance(record, ModelVersion):
            return bare
        [code] = bare.upstream
        upstream = tuple(code if (ref.tool, ref.id) == (code.tool, code.id) else ref for ref in record.upstream)
        return dataclasses.replace(record, of=None, tracking_uri=bare.tracking_uri, upstream=upstream)

    def _commit(self, rev: str) -> str:
        try:
            return self._git("rev-parse", "--verify", "--end-of-options", f"{rev}^{{commit}}").decode().strip()
        except RegistryError as error:
            raise RegistryError(
                f"{rev!r} is not a commit of {self.repo}: {error} Commit the model's files first."
            ) from error

    def _code(self, entity: "Version") -> Ref:
        return Ref("git", "commit", entity.commit_hexsha, at=str(self.repo))

    def _place(self, version: ModelVersion) -> str:
        return f"{REFS}/{tag_name(version.name)}@{version.version}"

    def _git(self, *arguments: str, stdin: bytes = b"") -> bytes:
        process = git(self.repo, *arguments, stdin=stdin, timeout=self.timeout)
        if process.returncode:
            raise RegistryError(f"`git {arguments[0]}` in {self.repo} failed: {_text(process.stderr)}")
        return process.stdout


def _holder(artifact: "Artifact", stage: str) -> str:
    """The version that was assigned last: GTO's times are whole seconds, in one of which the numbers count up."""
    assigned: list[tuple[Any, str]] = []
    for version in artifact.get_versions():
        if vstage := version.stages.get(stage):
            last = max(
                [*vstage.assignments, *vstage.unassignments], key=lambda event: (event.created_at, _number(event.tag))
            )
            if last in vstage.assignments:
                assigned.append(((last.created_at, _number(last.tag)), version.version))
    return max(assigned)[1] if assigned else ""


def _number(tag: str) -> int:
    number = re.search(r"#(\d+)$", tag)
    return int(number[1]) if number else 0


def _text(stderr: bytes) -> str:
    """The reason that git gives, without its report of each ref."""
    lines = stderr.decode(errors="replace").strip().splitlines()
    return mask_credentials("\n".join(line for line in lines if not line.startswith(" ") or line[1:2] == "!"))[-500:]
