"""Deployments whose processes come back by themselves, whoever is killed, and switches that cut no request off."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from dagster_mlops.core.processes import identity
from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.provenance import Package
from dagster_mlops.serving import PredictionLog, repair, rollback, status, stop
from dagster_mlops.serving.commands import app
from dagster_mlops.serving.golden.golden_set import Golden
from dagster_mlops.serving.local import envoy, processes, supervision
from dagster_mlops.serving.local.envoy_config import Backend
from dagster_mlops.serving.local.overview import log_file
from dagster_mlops.serving.local.state import load_all
from dagster_mlops.serving.packager import ServerSettings, server_of
from tests.support.small_packages import Deployment, SmallPackages


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    deployment = Deployment(tmp_path_factory.mktemp("serving"))
    yield deployment
    stop(deployment.state_dir)


@pytest.fixture
def live(deployment):
    """A deployment with two healthy replicas and all supervisors."""
    states = [state for state in load_all(deployment.state_dir) if state.phase == "live"]
    if not (states and all(supervision.alive(deployment.state_dir, states[0].role).values())):
        deployment.roll_out("2")
    repair(deployment.state_dir)
    until(lambda: replicas_answer(deployment))
    return deployment


def until(condition, seconds: float = 60) -> None:
    wait_while(lambda: not condition(), timeout=seconds, error=lambda _: AssertionError("waited in vain"))


def state_of(deployment: Deployment):
    return [state for state in load_all(deployment.state_dir) if state.phase == "live"][-1]


def programs(deployment: Deployment) -> dict[str, processes.psutil.Process]:
    """By role and program, such as ``server replica-0`` and ``envoy supervisor``; waiting ones are left out."""
    return {
        f"{role.partition(':')[0]} {name}": process
        for role, group in processes.marked(deployment.state_dir).items()
        for process in group
        if (name := processes.mark(process, processes.PROGRAM)) != supervision.WAITING
    }


def replicas_answer(deployment: Deployment) -> bool:
    try:
        return all(httpx.get(f"{url}/readyz", trust_env=False).status_code == 200 for url in state_of(deployment).urls)
    except httpx.HTTPError:
        return False


class Traffic:
    """Asks the public port from four threads without a pause, and remembers the codes and the times of failures."""

    def __init__(self, deployment: Deployment) -> None:
        self.codes: list[int] = []
        self._url, self._over = f"{deployment.url}/predict", threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]

    def _run(self) -> None:
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not self._over.is_set():
                try:
                    self.codes.append(client.post(self._url, json={"rows": [{"x": 1.0}]}).status_code)
                except httpx.HTTPError:
                    self.codes.append(0)
                time.sleep(0.01)

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_a_killed_server_costs_its_own_requests_at_most_and_comes_back_by_itself(live):
    before = programs(live)
    with Traffic(live) as traffic:
        until(lambda: len(traffic.codes) > 20)
        before["server replica-0"].kill()
        until(lambda: programs(live).get("server replica-0", before["server replica-0"]) != before["server replica-0"])
        until(lambda: replicas_answer(live))
        count = len(traffic.codes)
        until(lambda: len(traffic.codes) > count + 20)
    assert [code for code in traffic.codes if code != 200] == [503] * sum(code != 200 for code in traffic.codes)
    assert sum(code != 200 for code in traffic.codes) <= 4, "one for each thread, in flight at the kill"
    assert programs(live)["server replica-1"] == before["server replica-1"]


def test_a_killed_envoy_comes_back_by_itself(live):
    before = programs(live)
    before["envoy envoy"].kill()
    until(lambda: programs(live).get("envoy envoy", before["envoy envoy"]) != before["envoy envoy"])
    until(lambda: status(live.state_dir)[0]["healthy"])
    assert live.ask(3.0).json()["predictions"] == [3 * float(state_of(live).record.model_version)]


def test_programs_go_on_without_their_supervisor_and_a_new_one_takes_no_second_copy(live):
    before = programs(live)
    for name in ("server supervisor", "envoy supervisor"):
        before[name].kill()
        before[name].wait(10)
    assert live.ask().status_code == 200
    [row] = status(live.state_dir)
    assert row["healthy"] and not row["supervised"] and "serving repair" in row["reason"]

    assert any("supervisor" in action for action in repair(live.state_dir))
    assert status(live.state_dir)[0]["supervised"] and repair(live.state_dir) == []
    waiting = lambda: [  # noqa: E731
        process
        for group in processes.marked(live.state_dir).values()
        for process in group
        if processes.mark(process, processes.PROGRAM) == supervision.WAITING
    ]
    until(lambda: len(waiting()) == 3)
    after = programs(live)
    served = ("server replica-0", "server replica-1", "envoy envoy")
    assert [after[name] for name in served] == [before[name] for name in served]

    after["server replica-0"].kill()  # which the new supervisor never started
    until(lambda: programs(live).get("server replica-0", after["server replica-0"]) != after["server replica-0"])
    until(lambda: replicas_answer(live))


@pytest.mark.thorough
def test_without_a_healthy_replica_the_answer_comes_at_once(live):
    state = state_of(live)
    supervision.stop(live.state_dir, state.role)
    assert live.ask().status_code == 503
    assert status(live.state_dir)[0]["reason"].startswith("no server process runs")
    repair(live.state_dir)
    until(lambda: status(live.state_dir)[0]["healthy"])
    assert state_of(live).id == state.id


def test_a_switch_waits_for_the_requests_that_the_old_servers_have(live):
    answers = []
    call = threading.Thread(target=lambda: answers.append(live.ask(seconds=2, headers={"x-request-id": "long"})))
    old = state_of(live)
    call.start()
    until(lambda: envoy.open_requests(live.state_dir, old.id) == 1)
    version = {"2": "3", "3": "2"}[old.record.model_version]
    new, started = live.roll_out(version)
    assert started and call.join(30) is None
    assert answers[0].status_code == 200 and answers[0].json()["deployment"] == f"small/{old.id}"
    entry = PredictionLog.find(new.record.prediction_log, "long")
    assert entry and entry["deployment"] == f"small/{old.id}"
    assert live.ask().json()["predictions"] == [float(version)]
    assert not processes.marked(live.state_dir).get(old.role)


def test_a_stranger_selects_no_deployment_and_sends_no_probes(live):
    state = state_of(live)
    guesses = {"x-select-deployment": state.id, "x-probe": "guess", "x-envoy-upstream-rq-timeout-ms": "1"}
    answer = live.ask(seconds=0.1, headers=guesses)
    assert answer.status_code == 200 and answer.headers["x-deployment"] == state.id
    assert not {"x-select-deployment", "x-probe", "x-envoy-internal"} & set(answer.json()["headers"])
    proof = live.ask(headers={"x-probe": state.probe, "x-request-id": "golden"})
    assert "x-probe" in proof.json()["headers"] and not PredictionLog.find(state.record.prediction_log, "golden")
    standby = Backend("standby", [processes.free_port()], "/readyz", "secret")
    try:
        for secret, code in {"standby": 200, "guess": 200, "secret": 503}.items():
            backend = Backend(state.id, state.ports, state.readiness, state.probe)
            envoy.route(live.state_dir, backend, standby)
            until(lambda: live.ask(headers={"x-select-deployment": "secret"}).status_code == 503)
            assert live.ask(headers={"x-select-deployment": secret}).status_code == code, secret
    finally:
        repair(live.state_dir)


def test_a_repair_undoes_changes_of_envoys_files_and_ends_strays_of_this_folder_only(live, tmp_path):
    routes = live.state_dir / "envoy" / "live" / "rds.json"
    whole = routes.read_text()
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    marks = {"state_dir": live.state_dir, "environment": {}, "log": tmp_path / "log"}
    stray = processes.spawn(command, role="server:forgotten", **marks)
    other = processes.spawn(command, role="server:other", **{**marks, "state_dir": tmp_path})
    try:
        for text in (json.dumps({"resources": []}), "{", whole.replace(state_of(live).id, "elsewhere")):
            routes.write_text(text)
            assert "Restored the routes of Envoy." in repair(live.state_dir)
            assert routes.read_text() == whole
            until(lambda: live.ask().status_code == 200)
        assert not identity(stray) and identity(other)
    finally:
        os.kill(other, signal.SIGKILL)
    assert repair(live.state_dir) == []


def test_a_first_deployment_that_fails_leaves_the_logs_that_the_error_names_and_nothing_that_runs(tmp_path):
    deployment = Deployment(tmp_path)
    with pytest.raises(DeploymentError, match=r"ended before it was ready(.|\n)*could not convert string to float"):
        deployment.roll_out("two", golden=lambda: Golden(rows=[{"x": 1.0}], expected=[1.0]))
    assert not processes.marked(deployment.state_dir)
    with pytest.raises(httpx.ConnectError):
        deployment.ask()
    folders = sorted(path.name for path in deployment.state_dir.iterdir() if path.is_dir())
    assert folders == ["deployments", "logs"]
    [failed] = status(deployment.state_dir)
    assert failed["phase"] == "failed" and "could not convert" in failed["reason"]


def test_a_rollback_serves_the_package_before_and_the_asset_does_not_undo_it(live):
    former = state_of(live).record.model_version
    live.roll_out("5")
    back = rollback(live.state_dir)
    assert (back.record.package, back.undone_package) == (f"small:{former}", "small:5")
    assert live.ask().json()["deployment"] == f"small/{back.id}"
    [row] = status(live.state_dir)
    assert row["healthy"] and row["rolled_back_package"] == "small:5"
    kept, started = live.roll_out("5")
    assert (kept.id, started) == (back.id, False)
    assert live.ask().json()["predictions"] == [float(former)]

    again = rollback(live.state_dir)
    assert (again.record.package, again.undone_package) == ("small:5", f"small:{former}")
    assert live.roll_out("6")[1], "another package is deployed"
    stop(live.state_dir)
    with pytest.raises(DeploymentError, match="has no deployment that is live"):
        rollback(live.state_dir)


def test_the_logs_are_shown_by_name_with_credentials_masked(live):
    state = state_of(live)
    with log_file(live.state_dir).open("a") as stream:
        stream.write("password=hunter2-long-secret \x1b[2Kall is well\n")
    shown = CliRunner().invoke(app, ["logs", str(live.state_dir), "--lines", "2"])
    assert "serving" in shown.output and "hunter2" not in shown.output and r"\x1b[2Kall is well" in shown.output
    assert CliRunner().invoke(app, ["logs", str(live.state_dir), state.id, "--lines", "0"]).output == ""
    assert "supervisord started" in CliRunner().invoke(app, ["logs", str(live.state_dir), "supervisor"]).output
    refused = CliRunner().invoke(app, ["logs", str(live.state_dir), "nothing"])
    assert refused.exit_code and "it has: " in refused.output


def test_a_server_keeps_its_bytecode_also_where_the_worker_writes_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    command = [sys.executable, "-c", "import sys, time; print(sys.dont_write_bytecode, flush=True); time.sleep(60)"]
    program = supervision.Program(command, {}, tmp_path / "log")
    try:
        supervision.start(tmp_path, "server:one", {"replica-0": program})
        until(lambda: program.log.exists() and program.log.read_text())
    finally:
        supervision.stop(tmp_path, "server:one")
    assert program.log.read_text() == "False\n"


def test_a_tool_without_settings_of_its_servers_refuses_them_and_serves_as_before():
    package = Package(tool="small", tag="small:2", home="", model_name="small", model_version="2")
    server = server_of(SmallPackages(), package, 8000, ServerSettings(timeout=3))
    assert server == SmallPackages().server(package, 8000)
    with pytest.raises(DeploymentError, match=r"SmallPackages does not take workers= or threads="):
        server_of(SmallPackages(), package, 8000, ServerSettings(workers=2, threads=3))


@pytest.mark.thorough
def test_the_command_line_repairs(live):
    programs(live)["envoy supervisor"].kill()
    command = [sys.executable, "-W", "error", "-m", "dagster_mlops.cli", "serving", "repair", str(live.state_dir)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, "") and "Restored Envoy." in done.stdout
