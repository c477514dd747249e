"""Dagster runs in processes that tests kill, forked from a server that has imported everything."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository  # no public way to run one job of a file

SERVER = multiprocessing.get_context("forkserver")
PRELOADED = [
    "alembic.command", "dagster_mlops.mlflow.sweep", "matplotlib.figure", "mlflow.pyfunc", "mlflow.sklearn",
    "mlflow.store.tracking.sqlalchemy_store", "optuna.storages", "sklearn.ensemble", "skops.io",
]  # fmt: skip


def execute(
    file: str, job: str, home: str, environment: dict[str, str], again: str | None, partition: str | None
) -> None:
    """One run of a job, or the re-execution of one."""
    os.setsid()
    os.environ.update(environment)
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(devnull, stream)
    with dg.DagsterInstance.from_config(home) as instance:
        target = ReconstructableRepository.for_file(file, "WORLD").get_reconstructable_job(job)
        options = dg.ReexecutionOptions(parent_run_id=again) if again else None
        tags = {"dagster/partition": partition} if partition else None
        with dg.execute_job(target, instance, reexecution_options=options, tags=tags) as result:
            os._exit(0 if result.success else 1)


def run_until_killed(
    instance: dg.DagsterInstance,
    file: str,
    job: str,
    environment: dict[str, str],
    *,
    again: str | None = None,
    partition: str | None = None,
    kill_after: Callable[[], bool] | float | None = None,
    by: signal.Signals = signal.SIGKILL,
) -> tuple[str, int]:
    """Execute in a process, and kill it: after seconds, or once something is so. Gives the run's id and exit code."""
    before = {run.run_id for run in instance.get_runs()}
    SERVER.set_forkserver_preload(PRELOADED)
    arguments = (file, job, instance.root_directory, environment, again, partition)
    process = SERVER.Process(target=execute, args=arguments)
    process.start()
    started = time.monotonic()
    while process.is_alive():
        waited = time.monotonic() - started
        if waited > 120:
            raise TimeoutError(f"{job} takes more than two minutes")
        if kill_after is not None and (kill_after() if callable(kill_after) else waited > kill_after):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid or 0, by)
            kill_after = None
        process.join(0.01)
    made = [run for run in instance.get_runs() if run.run_id not in before]
    for run in made:
        if not run.is_finished:
            instance.report_run_failed(run)  # as run monitoring does
    if process.exitcode not in (0, -signal.SIGKILL) and by == signal.SIGKILL:
        events = [event.dagster_event for run in made for event in instance.all_logs(run.run_id)]
        raise AssertionError([event.step_failure_data.error for event in events if event and event.is_step_failure])
    return (made[0].run_id if made else again or ""), process.exitcode or 0


def run_at_once(
    instance: dg.DagsterInstance, file: str, job: str, environment: dict[str, str], partitions: Sequence[str]
) -> list[int]:
    """Execute a job for several partitions at the same time, each in a process of its own. Gives their exit codes."""
    SERVER.set_forkserver_preload(PRELOADED)
    home = instance.root_directory
    processes = [SERVER.Process(target=execute, args=(file, job, home, environment, None, key)) for key in partitions]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [-1 if process.exitcode is None else process.exitcode for process in processes]
