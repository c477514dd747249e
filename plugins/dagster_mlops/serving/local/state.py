"""The deployments of a state folder: one file each, written before and after every step."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dagster_mlops.core import files
from dagster_mlops.core.inside import inside
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import DeploymentError, ProvenanceError
from dagster_mlops.provenance import Deployment, Record
from dagster_mlops.serving.local import supervision
from dagster_mlops.serving.local.processes import marked

# starting → verifying → (trial →) switching → live → draining → stopped, or failed from those before live
ENDED = ("stopped", "failed")
SERVER = "server:"  # begins the mark of every process of a deployment


@lazy_dataclass(frozen=True, kw_only=True)
class DeploymentState:
    """One deployment: its intent, its replicas, how far it came."""

    record: Deployment
    phase: str
    ports: Sequence[int]  # one for each replica
    fingerprint: str
    golden_hash: str
    probe: str  # secret of golden requests, which are not logged as traffic, and of requests before it is live
    route: str
    readiness: str = "/readyz"
    rows_field: str = "rows"
    refuses_repeats: bool = False
    public: Sequence[str] | None = None  # paths for everyone beside these two; all, in an older file
    former: str = ""  # the deployment that was live before
    undone_package: str = ""  # that a rollback to this deployment took out of service
    tolerance: float = 1e-9
    ready_timeout: float = 120
    drain_seconds: float = 30
    ready_seconds: float = 0
    switch_seconds: float = 0
    trial: Mapping[str, Any] | None = None  # the last look at it, beside the deployment before
    refusal: str = ""  # hash of the deployment and the options of a trial which it did not stand
    error: str = ""

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def urls(self) -> list[str]:
        """The replicas themselves, behind the proxy."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    @property
    def role(self) -> str:
        """The mark of the server's processes."""
        return f"{SERVER}{self.id}"

    def alive(self) -> bool:
        """A replica runs; its readiness is another question."""
        folder = Path(self.record.state_dir)
        replicas = supervision.alive(folder, self.role)
        # The server of version 0.1.0 has no supervisor; the mark in the environment of its process says the same.
        return any(replicas.values()) if replicas else self.role in marked(folder)

    def save(self, **changes: object) -> "DeploymentState":
        """A copy with the changes, after it was written to disk."""
        state = dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType] - names are checked at run time
        data = {**dataclasses.asdict(state), "record": state.record.to_dict(), "updated": utc_now()}
        place = state_file(Path(state.record.state_dir), state.id)
        files.write_atomically(place, json.dumps(data, indent=1), private=True, durable=True)
        return state

    def end(self, phase: str, error: str = "") -> "DeploymentState":
        """Write down that it serves no more."""
        record = dataclasses.replace(self.record, stopped=self.record.stopped or utc_now(), traffic=0.0)
        return self.save(phase=phase, record=record, error=error or self.error)


def utc_now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def state_file(state_dir: Path, deployment_id: str) -> Path:
    """The file with the state of a deployment.

    Raises:
        DeploymentError: the id is not one of a deployment, but a path elsewhere.
    """
    return inside(state_dir / "deployments", f"{deployment_id}.json", error=DeploymentError)


def load(path: Path) -> DeploymentState:
    """Read one state file.

    Raises:
        DeploymentError: it is damaged; neither a kill nor a power cut can be the cause.
    """
    try:
        data = json.loads(path.read_text())
        record = Record.from_dict(data.pop("record"))
        if "port" in data:  # of version 0.1.0
            data["ports"] = [data["port"]]
        fields = {field.name for field in dataclasses.fields(DeploymentState)}
        if not isinstance(record, Deployment):
            raise ProvenanceError(f"holds a {record.role} record")
        return DeploymentState(record=record, **{k: v for k, v in data.items() if k in fields})
    except (ValueError, KeyError, TypeError, ProvenanceError) as error:
        raise DeploymentError(f"{path} is damaged ({error}). Remove it once its server is stopped.") from error


def load_all(state_dir: Path) -> list[DeploymentState]:
    """Every deployment, oldest first."""
    states = [load(path) for path in (state_dir / "deployments").glob("*.json")]
    return sorted(states, key=lambda s: (s.record.started, s.id))


def lock(state_dir: Path, *, timeout: float) -> AbstractContextManager[None]:
    """Hold the state folder's lock; the system takes it back from a killed process.

    Raises:
        DeploymentError: another process still deploys after `timeout` seconds.
    """
    return files.exclusive(files.own_folder(state_dir) / "lock", timeout, error=DeploymentError)


def busy(state_dir: Path) -> bool:
    """True while a process holds the lock."""
    with files.if_free(state_dir / "lock") as free:
        return not free
