"""A state folder made to agree with what its files say: after a kill, a reboot, or a change by hand."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from dagster_mlops.core.files import if_free
from dagster_mlops.serving.local import envoy, processes, supervision
from dagster_mlops.serving.local.state import ENDED, SERVER, DeploymentState, load_all
from dagster_mlops.serving.local.target import LocalTarget


def take_stock(target: LocalTarget, say: Callable[[str], object]) -> DeploymentState | None:
    """Finish or undo what a killed rollout left, and return the deployment that traffic goes to, dead or alive.

    Its supervisor runs afterwards. Every other process of the folder but Envoy is stopped, once it has answered the
    requests that it has.
    """
    folder = target.state_dir
    states = [state for state in load_all(folder) if state.phase not in ENDED]
    routed = envoy.routed(folder)
    serving = [s for s in states if s.id == routed and s.phase in ("switching", "live")]
    serving += [s for s in states if s.phase == "live" and s.id != routed]
    current = next((s for s in serving if s.alive()), serving[0] if serving else None)
    for state in states:
        if current is None or state.id != current.id:
            if state.phase == "trial":  # it has a share of the traffic
                target.shift(current, state)
            if state.alive():
                target.drain(state, timeout=target.request_timeout)
            target.stop(state)
            state.end("stopped", "interrupted")
            say(f"Stopped {state.id}, which an interrupted rollout left behind.")
    for role in processes.marked(folder):
        if not role.startswith(envoy.ROLE) and not (current and role == current.role):
            supervision.stop(folder, role)
            say(f"Stopped {role.removeprefix(SERVER)}, which belongs to no deployment of {folder}.")
    if current and current.phase == "switching":
        current = current.save(phase="live", record=dataclasses.replace(current.record, traffic=1.0))
    if current and supervision.exists(folder, current.role):
        supervision.accept(folder, current.role)
        if supervision.ensure(folder, current.role):
            say(f"Started the supervisor of {current.id}.")
    return current


def repair(state_dir: str | Path) -> list[str]:
    """Bring back what has ended, or was changed by hand, of a deployment that is live; returns what was done, in words.

    It starts supervisors that are gone, and they start servers and Envoy; a server that still runs goes on. It writes
    Envoy's files again where they differ, and stops processes of the folder that belong to no deployment. Nothing else
    on the machine is touched. While a rollout is under way, it does nothing.

        repair("state/serving")  # after a reboot, for example
    """
    folder = Path(state_dir).expanduser().resolve()
    target, actions = LocalTarget.stored(folder), list[str]()
    if target is None:
        return actions
    with if_free(folder / "lock") as free:
        if not free:
            return actions
        for state in load_all(folder):
            # The sensor that calls this has a minute.
            if state.phase == "draining" and (left := target.drain(state, timeout=20)):
                return [f"{state.id} has yet to answer {left} requests; nothing else is repaired until then."]
        current = take_stock(target, actions.append)
        if current is None:
            return actions
        target = target.renewed(actions.append)
        if target.shift(current):
            actions.append("Restored the routes of Envoy.")
        if target.open():
            actions.append("Restored Envoy.")
    return actions
