"""Status of the deployments in a state folder, and how to stop them."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from dagster_mlops.core.inside import inside
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving.local import envoy, processes, supervision
from dagster_mlops.serving.local.state import ENDED, DeploymentState, load_all, lock
from dagster_mlops.serving.local.target import LocalTarget, probe

_OF_RECORD = ("name", "id", "package", "model_name", "model_version", "url")


def status(state_dir: str | Path) -> list[dict[str, Any]]:
    """Every deployment that has not ended, oldest first; if all have, the last one if it failed.

    It only reads, and answers within seconds.

    Each has ``name, id, package, model_name, model_version, url, phase, started, pids, live`` (traffic goes to it),
    ``healthy`` (and it answers through the public port), ``supervised`` (what ends is started again),
    ``rolled_back_package`` (taken out of service by a rollback to this deployment) and, in words, ``reason``.

        any(d["healthy"] for d in status("state/serving"))
    """
    folder = Path(state_dir).expanduser().resolve()
    running = processes.marked(folder)
    routed = envoy.routed(folder)
    states = load_all(folder)
    left = [state for state in states if state.phase not in ENDED]
    rows = []
    last_to_end = sorted(states, key=lambda state: state.record.stopped)[-1:]
    for state in left or [state for state in last_to_end if state.phase == "failed"]:
        live = state.id == routed and state.phase in ("switching", "live")
        problem = _problem(state, running) if live else state.error or _trial(state) or "takes no traffic"
        row: dict[str, Any] = {name: getattr(state.record, name) for name in _OF_RECORD}
        row |= {"phase": state.phase, "started": state.record.started, "rolled_back_package": state.undone_package}
        groups = [state.role, *(role for role in running if role.startswith(envoy.ROLE))]
        row["pids"] = sorted(process.pid for process in running.get(state.role, ()))
        row["supervised"] = all(supervision.is_supervised(folder, role) for role in groups)
        reason = problem or "answers through the public port"
        if live and not row["supervised"]:
            reason += "; a supervisor is gone, run `dagster-mlops serving repair`"
        rows.append({**row, "live": live, "healthy": live and not problem, "reason": reason})
    return rows


def stop(state_dir: str | Path) -> int:
    """Stop every server and the proxy of a state folder; returns how many processes were ended.

    Raises:
        DeploymentError: a deployment is under way and does not end within 30 s.
    """
    folder = Path(state_dir).expanduser().resolve()
    if not folder.exists():
        return 0
    with lock(folder, timeout=30):
        count = sum(supervision.stop(folder, role) for role in processes.marked(folder))
        for state in load_all(folder):
            if state.phase not in ENDED:
                state.end("stopped")
        LocalTarget(folder, 0).close()
    return count


def log_file(state_dir: str | Path, name: str = "") -> Path:
    """The log of a deployment, by its id, or of ``envoy`` or ``supervisor``; of the last deployment by default.

    Raises:
        DeploymentError: No deployment or program has this name.
    """
    folder = Path(state_dir).expanduser().resolve()
    last = [state.id for state in load_all(folder)][-1:]
    file = inside(folder / "logs", f"{name or ''.join(last)}.log", error=DeploymentError)
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in file.parent.glob("*.log"))) or "none"
        raise DeploymentError(f"{folder} has no log of {name or 'a deployment'!r}; it has: {names}.")
    return file


def _trial(state: DeploymentState) -> str:
    if not state.trial:
        return ""
    gets = "copies of requests" if state.trial["kind"] == "shadow" else f"{state.trial['share']:.1%} of the traffic"
    return f"{state.trial['kind']} with {gets}, {state.trial['verdict']}: {state.trial['reason']}"


def _problem(state: DeploymentState, roles: Collection[str]) -> str:
    if not state.alive():
        return "no server process runs"
    if not any(role.startswith(envoy.ROLE) for role in roles):
        return "the Envoy process is gone"
    return probe(state.record.url, state)
