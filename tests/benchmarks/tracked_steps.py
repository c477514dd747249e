"""Tracked training steps, many at once, against one tracking server on Postgres; then kills at random moments.

``python -m tests.benchmarks.tracked_steps --steps 200 --kills 50``: each step is a Dagster run of one partition in a
process of its own, which is forked from this one so that as many as possible fit, and which trains, logs from its main
thread and from another one, and registers a model. ``--at-once`` is how many processes there are at a time, ``--limit``
how many requests a second the server takes before it answers 429 (0: all).

Checked after the steps: one finished MLflow run per partition, with the param and metrics of that partition and nothing
else, and one model version from it. After the kills: the sensor leaves no run open, a re-execution of each killed
Dagster run ends in a finished MLflow run with one version, and nothing is left RUNNING.
"""

import argparse
import collections
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.code_state import CodeState
from dagster_mlops.mlflow import MlflowResource, close_orphan_runs_sensor, training_asset
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.training import run_facts as facts
from tests.benchmarks.measure import QUIET, console
from tests.support.feast_servers import control, postgres_server
from tests.support.mlflow_servers import Proxy, mlflow_server

STEPS = dg.StaticPartitionsDefinition([f"{number:04}" for number in range(2000)])
EXPERIMENT, MODEL = "stress", "stress"


@training_asset(registered_model_name=MODEL, experiment=EXPERIMENT, partitions_def=STEPS, system_metrics=False)
def trained(context: dg.AssetExecutionContext) -> None:
    import mlflow
    import mlflow.sklearn as sklearn_flavor
    import pandas as pd
    from mlflow.models import infer_signature
    from sklearn.linear_model import LinearRegression

    number = int(context.partition_key)
    frame = pd.DataFrame({"x": [0.0, 1.0, 2.0]})
    model = LinearRegression().fit(frame, [number, number + 1.0, number + 2.0])
    mlflow.log_param("number", number)
    beside = threading.Thread(target=mlflow.log_metric, args=("from_thread", number))
    beside.start()
    for step in range(3):
        mlflow.log_metric("from_main", number, step=step)
        time.sleep(float(os.environ["STRESS_HOLD"]) / 3)
    beside.join()
    signature = infer_signature(frame, model.predict(frame))
    example = frame.head(1)
    sklearn_flavor.log_model(
        model, name="model", signature=signature, input_example=example, pip_requirements=["scikit-learn"]
    )


def job() -> dg.JobDefinition:
    """The job of all steps, made anew where it runs."""
    defs = dg.Definitions(
        assets=[trained],
        jobs=[dg.define_asset_job("train", [trained], executor_def=dg.in_process_executor)],
        resources={"mlflow": _resource()},
    )
    return defs.resolve_job_def("train")


def _resource() -> MlflowResource:
    """Patient with a server that shares two cores with all who ask it."""
    return MlflowResource(
        tracking_uri=dg.EnvVar("STRESS_URI"), connect_timeout=60, request_timeout=120, request_retries=8
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.tracked_steps", description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--limit", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=2, help="processes of the server")
    parser.add_argument("--hold", type=float, default=1.0, help="seconds that a training takes at least")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers there, too")
    asked = parser.parse_args()
    found = run(asked)
    console.print_json(json.dumps(found))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(bool(found["problems"]))


def run(asked: argparse.Namespace) -> dict[str, Any]:
    """All of it. ``problems`` is what was not as it should be: empty."""
    os.environ.update({**QUIET, "STRESS_HOLD": str(asked.hold)})
    # Somebody who edits this checkout meanwhile would change the code, and with it which run a re-execution continues.
    facts.code_state = lambda path, **_: CodeState()  # pyright: ignore[reportPrivateImportUsage]
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        os.environ["DAGSTER_HOME"] = str(folder / "dagster")
        Path(folder, "dagster").mkdir()
        Path(folder, "dagster", "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        port = 20_000 + os.getpid() % 10_000
        postgres = stack.enter_context(postgres_server())
        control(postgres, "restart", port + 2)
        backend = f"postgresql://postgres@127.0.0.1:{port + 2}/postgres"
        stack.enter_context(mlflow_server(folder, port, backend, workers=asked.workers))
        told = stack.enter_context(_limited(port + 1, port, asked.limit))
        os.environ["STRESS_URI"] = f"http://127.0.0.1:{port + 1}"
        _warm_up(folder)
        began = time.monotonic()
        most = _all_at_once(range(asked.steps), asked.at_once)
        seconds = time.monotonic() - began
        problems = _problems(range(asked.steps))
        requests, refused = told()
        killed = _kill(range(asked.steps, asked.steps + asked.kills), asked.at_once, asked.seed)
        return {
            "steps": asked.steps,
            "most_processes_at_once": most,
            "most_open_runs_at_once": _overlap(),
            "seconds": round(seconds, 1),
            "requests": requests,
            "answered_429": refused,
            **killed,
            "problems": [*problems, *killed["problems"]],
        }


@contextmanager
def _limited(port: int, target: int, limit: float) -> Iterator[Callable[[], tuple[int, int]]]:
    """A proxy in a process of its own that takes `limit` requests a second. Tells how many came, and were refused."""
    context = get_context("fork")
    counts = context.Array("l", 2)

    def serve() -> None:
        class Limited(Proxy):
            left, at = limit, time.monotonic()

            def refuses(self) -> bool:
                now = time.monotonic()
                self.left, self.at = min(limit, self.left + (now - self.at) * limit), now
                counts[0] += 1
                if not limit or self.left >= 1:
                    self.left -= 1
                    return False
                counts[1] += 1
                return True

        Limited(port, target).serve_forever()

    server = context.Process(target=serve, daemon=True)
    server.start()
    time.sleep(0.5)
    try:
        yield lambda: (counts[0], counts[1])
    finally:
        server.kill()
        server.join()


def _warm_up(folder: Path) -> None:
    """Train once in this process, elsewhere: its forks then have all modules, and inherit no connection.

    And create the Dagster home, which two processes cannot do at a time.
    """
    resource = MlflowResource(tracking_uri=f"sqlite:///{folder}/warm.db")
    with dg.DagsterInstance.get(), dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([trained], partition_key="1999", instance=instance, resources={"mlflow": resource})


def _train(partition: str, again: str = "") -> None:
    options: dict[str, Any] = {"tags": {"dagster/partition": partition}}
    if again:
        options["reexecution_options"] = dg.ReexecutionOptions(parent_run_id=again)
    with dg.DagsterInstance.get() as instance, dg.execute_job(dg.reconstructable(job), instance, **options) as result:
        assert result.success


def _fork(action: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with Path(os.environ["DAGSTER_HOME"], f"{os.getpid()}.log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            action()
        code = 0
    finally:
        os._exit(code)


def _all_at_once(numbers: Sequence[int], at_once: int) -> int:
    """Run the steps, `at_once` at a time. Gives back how many there were at most."""
    waiting, open_, most = collections.deque(numbers), set[int](), 0
    while waiting or open_:
        while waiting and len(open_) < at_once:
            number = waiting.popleft()
            open_.add(_fork(lambda number=number: _train(f"{number:04}")))
        most = max(most, len(open_))
        pid, _ = os.waitpid(-1, 0)
        open_.discard(pid)
    return most


def _kill(numbers: Sequence[int], at_once: int, seed: int) -> dict[str, Any]:
    """Kill each step at a random moment, let the sensor close what is open, then execute all of them again."""
    moments, known = random.Random(seed), {}
    began = time.monotonic()
    os.waitpid(_fork(lambda: _train("1998")), 0)
    usual = time.monotonic() - began
    numbers = list(numbers)
    for first in range(0, len(numbers), 5):
        children = {
            _fork(lambda number=number: _train(f"{number:04}")): number for number in numbers[first : first + 5]
        }
        due = {pid: time.monotonic() + moments.uniform(0.05, 1.5) * usual for pid in children}
        for pid in sorted(due, key=lambda pid: due[pid]):
            time.sleep(max(0.0, due[pid] - time.monotonic()))
            os.kill(pid, signal.SIGKILL)
            known[children[pid]] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    killed = [number for number in numbers if known[number]]
    before, problems = _by_partition(), []
    states = collections.Counter(found[0].info.status if (found := before.get(n)) else "no run yet" for n in killed)
    with dg.DagsterInstance.get() as instance:
        starts = {n: instance.get_runs(dg.RunsFilter(tags={"dagster/partition": f"{n:04}"})) for n in killed}
        for dagster_run in [run for found in starts.values() for run in found if not run.is_finished]:
            instance.report_run_failed(dagster_run)  # what run monitoring does
        resource = MlflowResource(tracking_uri=os.environ["STRESS_URI"], connect_timeout=60, request_timeout=120)
        close_orphan_runs_sensor()(dg.build_sensor_context(instance=instance, resources={"mlflow": resource}))
        after = _by_partition()
        for number in killed:
            if "RUNNING" in [run.info.status for run in after.get(number, [])]:
                problems.append(f"{number} is RUNNING after the sensor")
        roots = {number: found[0].run_id for number, found in starts.items() if found}
        recorded = instance.get_materialized_partitions(trained.key)
    again = [number for number in killed if f"{number:04}" not in recorded]  # the others had nothing left to do
    for first in range(0, len(again), at_once):
        began = [_fork(lambda n=n: _train(f"{n:04}", roots.get(n, ""))) for n in again[first : first + at_once]]
        for pid in began:
            if os.waitpid(pid, 0)[1]:
                problems.append("a re-execution failed")
    return {
        "kills": len(killed),
        "ended_before_the_kill": len(numbers) - len(killed),
        "states_when_killed": dict(states),
        "re_executed": len(again),
        "problems": [*problems, *_problems(numbers)],
    }


def _runs() -> list[Any]:
    client = MlflowResource(tracking_uri=os.environ["STRESS_URI"], connect_timeout=60).client()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(runs.search(client, [experiment.experiment_id], {}))


def _by_partition() -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for run in _runs():
        found.setdefault(int(run.data.tags.get("dagster_mlops.dagster_partition", -1)), []).append(run)
    return found


def _problems(numbers: Sequence[int]) -> list[str]:
    """What is lost, crossed, left open or there twice."""
    client, found, problems = (
        MlflowResource(tracking_uri=os.environ["STRESS_URI"], connect_timeout=60).client(),
        _by_partition(),
        [],
    )
    versions = collections.Counter(version.run_id for version in client.search_model_versions(f"name='{MODEL}'"))
    if strays := found.get(-1):
        problems.append(f"{len(strays)} runs belong to no step")
    for number in numbers:
        mine = found.get(number, [])
        if [run.info.status for run in mine] != ["FINISHED"]:
            problems.append(f"{number} has runs {[run.info.status for run in mine]}")
            continue
        [run] = mine
        seen = {**{k: float(v) for k, v in run.data.params.items()}, **run.data.metrics}
        if seen != {"number": number, "from_main": number, "from_thread": number}:
            problems.append(f"{number} has {seen}")
        if versions[run.info.run_id] != 1:
            problems.append(f"{number} has {versions[run.info.run_id]} versions")
    return problems


def _overlap() -> int:
    """How many MLflow runs were open at one moment, at most."""
    ended = [run.info for run in _runs() if run.info.end_time]
    changes = [*((info.start_time, 1) for info in ended), *((info.end_time, -1) for info in ended)]
    most = level = 0
    for _, change in sorted(changes):
        level += change
        most = max(most, level)
    return most


if __name__ == "__main__":
    main()
