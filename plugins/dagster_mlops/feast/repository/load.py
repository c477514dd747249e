"""The definitions of a Feast repository, loaded without importing Feast here."""

import functools
import hashlib
import itertools
import os
import re
from collections.abc import Collection
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from dagster_mlops.core.child import ChildError, run_child
from dagster_mlops.core.environment import whole_environment
from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.memory import remembered, state_dir
from dagster_mlops.core.private_files import private_umask
from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.repository import definitions
from dagster_mlops.feast.repository.definitions import Repository
from dagster_mlops.provenance.credentials import mask_credentials, masked_strings, remember_credentials

_KINDS = {
    "views": definitions.ViewDefinition,
    "on_demand_views": definitions.OnDemandViewDefinition,
    "sources": definitions.SourceDefinition,
    "services": definitions.ServiceDefinition,
    "entities": definitions.EntityDefinition,
    "permissions": definitions.PermissionDefinition,
    "projects": definitions.ProjectDefinition,
    "saved_datasets": definitions.SavedDatasetDefinition,
}
_REFRESHED = "refreshed"  # file with the time of the last refresh
_LOGGED = r"(DEBUG|INFO|WARNING):\w"
_SKIPPED = {".dagster_mlops", ".git", ".venv", "__pycache__", ".ipynb_checkpoints"}
_VARIABLE_IN_YAML = r"\$\{?(\w+)\}?"
_VARIABLE_IN_PYTHON = r"""(?:environ\s*\[|environ\.get\(|getenv\()\s*["'](\w+)["']"""


def load_repository(repo: str | Path, *, timeout: float = 180, kinds: Collection[str] = tuple(_KINDS)) -> Repository:
    """Read the definitions of the Feast repository in `repo` without importing Feast here.

    Feast's own parser runs in a process of its own. Its result is cached by the content of the repository's files, the
    environment variables they name and Feast's version, so that only a change costs more than a few milliseconds.

    For a ``feature_store.yaml`` without definitions beside it, the registry that it names is read instead, and read
    anew only by :func:`refresh_repository`. Definitions of kinds other than `kinds` are left out; ``stored_views`` are
    the on-demand views that are stored online.

    Raises:
        FeatureError: `repo` is not a Feast repository, Feast cannot read it, or it defines one name twice.
        MissingExtraError: Feast is not installed.
    """
    path = read_config(repo).path
    description = remembered(
        path,
        "feature_repository",
        content_key(path) + _refreshed(path),
        lambda: _parse(path, timeout),
        timeout=timeout,
        error=FeatureError,
    )
    things = {
        kind: [
            _KINDS[kind](**facts)
            for facts in description[kind]
            if kind in kinds or ("stored_views" in kinds and facts.get("stored"))
        ]
        for kind in _KINDS
    }
    repository = Repository(path=path, project=description["project"], **things)
    definitions.refuse_repeated_names(repository)
    return repository


def refresh_repository(repo: str | Path, *, timeout: float = 180) -> Repository:
    """Read the definitions anew; if that fails, the cached ones stay.

        refresh_repository("feature_repo")  # e.g. while an image is built, or from a job; then reload the code location

    Raises:
        FeatureError: As in :func:`load_repository`.
    """
    path = read_config(repo).path
    before, file = _refreshed(path), state_dir(path) / _REFRESHED
    write_atomically(file, datetime.now(UTC).isoformat())
    try:
        return load_repository(path, timeout=timeout)
    except BaseException:
        write_atomically(file, before)
        raise


def _refreshed(repo: Path) -> str:
    file = state_dir(repo) / _REFRESHED
    return file.read_text() if file.exists() else ""


def has_definitions(repo: Path) -> bool:
    """True if `repo` has definitions of its own, rather than only a registry that others apply to."""
    return any(file.suffix == ".py" and file.read_bytes().strip() for file in _definition_files(repo))


@lazy_dataclass(frozen=True, eq=False, repr=False)
class RepositoryConfig:
    """The settings of a ``feature_store.yaml`` that this plugin uses."""

    path: Path
    offline_store: str
    registry_type: str
    registry_path: str

    @property
    def registry_file(self) -> Path | None:
        """The registry's file, if it is a file on this machine."""
        if self.registry_type == "sql":
            _, prefix, file = self.registry_path.partition("sqlite:///")
            return Path(file.split("?")[0]) if prefix else None
        return None if "://" in self.registry_path else self.path / self.registry_path

    @property
    def registry_files(self) -> tuple[Path, ...]:
        """The registry's file and SQLite's log of changes beside it; none if the registry is not on this machine."""
        return (file, file.with_name(f"{file.name}-wal")) if (file := self.registry_file) else ()


def read_config(repo: str | Path) -> RepositoryConfig:
    """Read ``feature_store.yaml`` the way Feast does, environment variables included.

    Raises:
        FeatureError: The file is missing, is not a YAML mapping, or names an environment variable that is not set.
    """
    path = Path(repo).expanduser().resolve()
    file = path / "feature_store.yaml"
    if not file.is_file():
        raise FeatureError(
            f"{path} is not a Feast repository: it has no feature_store.yaml. Run `feast init` or fix repo=."
        )
    text = _settings(file)
    unset = sorted({name for name in re.findall(r"\$\{(\w+)\}", text)})
    if unset:
        raise FeatureError(f"{file} uses environment variables that are not set: {', '.join(unset)}. Set them.")
    try:
        data = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # in C, ten times as fast
    except yaml.MarkedYAMLError as error:
        # Without PyYAML's own message, and not as the cause: it quotes the line, which may hold a password.
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise FeatureError(f"{file} is not valid YAML: {error.problem} in line {line}.") from None
    if not isinstance(data, dict) or not data.get("project"):
        raise FeatureError(f"{file} names no project. Add a line `project: my_project`.")
    registry = data.get("registry") or {}
    registry = {"path": registry} if isinstance(registry, str) else registry
    offline = data.get("offline_store") or {}
    return RepositoryConfig(
        path=path,
        offline_store=str(offline if isinstance(offline, str) else offline.get("type", "dask")),
        registry_type=str(registry.get("registry_type", "file")),
        registry_path=str(registry.get("path", "data/registry.db")),
    )


def content_key(repo: Path) -> str:
    """A hash of everything that determines the repository's definitions."""
    digest = hashlib.sha256(_feast_version().encode())
    variables: set[str] = set()
    for file in _definition_files(repo):
        content = file.read_bytes()
        digest.update(f"\0{file.relative_to(repo).as_posix()}\0".encode() + content)
        pattern = _VARIABLE_IN_PYTHON if file.suffix == ".py" else _VARIABLE_IN_YAML
        variables.update(re.findall(pattern, content.decode(errors="replace")))
    for name in sorted(variables):
        digest.update(f"\0{name}={os.environ.get(name, '')}".encode())
    return digest.hexdigest()


def feast_problem(repo: Path, stderr: str) -> str:
    """Feast's own message, with the place in the repository that caused it."""
    places = [
        f"{file}:{line}"
        for file, line in re.findall(r'File "([^"]+)", line (\d+)', stderr)
        if file.startswith(str(repo))
    ]
    lines = [line for line in stderr.splitlines() if line.strip() and not re.match(_LOGGED, line)] or ["no message"]
    traceback = max((i for i, line in enumerate(lines) if line.startswith("Traceback ")), default=len(lines) - 2)
    below = itertools.dropwhile(lambda line: line.startswith("  "), lines[traceback + 1 :])
    message = " ".join(line.strip() for line in itertools.islice(below, 6)) or lines[-1]
    # Feast names the class that it cannot load, but not the missing module.
    missing = [line for line in lines if re.match(r"(ModuleNotFound|Import)Error: ", line)][-1:]
    because = f"; {missing[0]}" if "Could not import module" in message and missing else ""
    return without_secrets(repo, f"{message.rstrip('.')}{because}{f' (at {places[-1]})' if places else ''}")


def without_secrets(repo: Path, text: str) -> str:
    """A text that quotes Feast, without the credentials in ``feature_store.yaml`` and in URLs."""
    remember_credentials(yaml.safe_load(_settings(repo / "feature_store.yaml")))
    return mask_credentials(re.sub(r"(?s)input_value=.*?, (?=input_type=)", "", text))  # pydantic may cut a password


def run_feast(task: str, repo: Path, *, timeout: float, failure: str) -> Any:
    """The result of a task of ``_feast_script.py``, in a process of its own that runs in `repo`.

    Raises:
        FeatureError: Feast fails, or does not finish within `timeout` seconds. `failure` begins the message.
    """
    try:
        script = Path(__file__).with_name("_feast_script.py")
        options = {"env": whole_environment(), "umask": private_umask(repo)}  # it creates a file of an online store
        return run_child(script, task, cwd=repo, timeout=timeout, **options)
    except ChildError as error:
        if error.returncode is None:
            raise FeatureError(
                f"{failure}: Feast did not finish in {timeout:.0f} s. Raise timeout= or look for a slow source."
            ) from error
        raise FeatureError(f"{failure}: {feast_problem(repo, error.text)}.") from error


def _parse(repo: Path, timeout: float) -> dict[str, Any]:
    task = "files" if has_definitions(repo) else "registry"
    problem = f"Feast cannot read the repository {repo}, fix it and reload"
    # The path or the name of a source may hold credentials.
    return masked_strings(run_feast(task, repo, timeout=timeout, failure=problem))


def settings_text(repo: Path) -> str:
    """The text of ``feature_store.yaml`` without comments, environment variables included."""
    return _settings(repo / "feature_store.yaml")


def _settings(file: Path) -> str:
    lines = ["" if line.lstrip().startswith("#") else line for line in file.read_text().splitlines()]
    return os.path.expandvars("\n".join(lines))


def _definition_files(repo: Path) -> list[Path]:
    python = [file for file in repo.rglob("*.py") if not _SKIPPED & set(file.relative_to(repo).parts)]
    settings = [repo / name for name in ("feature_store.yaml", ".feastignore") if (repo / name).is_file()]
    return sorted([*python, *settings])


@functools.cache
def _feast_version() -> str:
    package = find_spec("feast")
    file = package.origin if package else extra("feast").__file__
    # By the name of a folder beside the package where there is one: `version` reads metadata, which takes 10 ms.
    beside = os.listdir(Path(str(file)).parent.parent)
    folder = next((name for name in beside if name.startswith("feast-") and name.endswith(".dist-info")), "")
    # The description's format is part of the key, because another version of this plugin may describe more.
    return f"{folder.removesuffix('.dist-info') or version('feast')}/5"
