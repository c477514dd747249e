"""`make demo`: the whole lifecycle, headless, with progress on the screen.

The work runs in a child process, because Dagster captures the output of a process that executes steps; the child
reports over a pipe. Assets that are neither missing nor stale are left alone, so a second run does next to nothing.
"""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any

import dagster as dg

from assets.data import FIRST_IN_PRODUCTION as REPLAYED
from assets.data import TRAINING_MONTHS
from resources import ROOT, STATE

LOG = STATE / "demo.log"
DEMO = "demo"  # the tag of its runs
# One process pays for the tools' imports once; "multiprocess" shows that steps need not share one.
EXECUTOR = os.environ.get("DAGSTER_MLOPS_EXECUTOR", "in_process")

_SHOWN = {dg.DagsterEventType.STEP_START, dg.DagsterEventType.ASSET_CHECK_EVALUATION}

# Title, job, partitions: one Dagster run each, in this order.
STAGES: list[tuple[str, str, list[str | None]]] = [
    ("Tables without a date", "static", [None]),
    ("Flights, weather, features", "ingest", [*TRAINING_MONTHS, REPLAYED]),
    ("Training set, model, evaluation", "train", [None]),
    ("Promotion", "promote", [None]),
    ("Bento and deployment", "release", [None]),
    ("Production traffic and its checks", "replay", [REPLAYED]),
]


def work(tell: Callable[..., None]) -> None:
    """Run what is missing or stale, stage by stage, in this process."""
    # No public way to run a named job of a module in process, nor to ask for an asset's staleness.
    from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
    from dagster._core.definitions.reconstruct import ReconstructableRepository
    from dagster._core.loader import LoadingContextForTest

    repository = ReconstructableRepository.for_module("assets.definitions", "defs", working_directory=str(ROOT))
    definition = repository.get_definition()
    graph = definition.asset_graph

    with dg.DagsterInstance.get() as instance:
        # A demo that was killed leaves a run that nobody will ever finish; the lock says that it is not this one's.
        unfinished = dg.RunsFilter(tags={DEMO: "true"}, statuses=[dg.DagsterRunStatus.STARTED])
        for run in instance.get_runs(unfinished):
            instance.report_run_failed(run, "The process that executed this run was killed.")

        def outdated(keys: set[dg.AssetKey], partition: str | None) -> Iterator[dg.AssetKey]:
            status = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
            for key in keys:
                wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None)
                if (
                    not instance.fetch_materializations(wanted, limit=1).records
                    or status.get_status(key, partition) != StaleStatus.FRESH
                    or is_down(key)
                ):
                    yield key

        for title, name, partitions in STAGES:
            keys = set(definition.get_job(name).asset_layer.selected_asset_keys)
            for partition in partitions:
                left = set(keys)
                tell(stage=title, partition=partition)
                # Staleness looks one step upstream, so new data may make more assets stale: go on until none is left.
                while due := set(outdated(left, partition)):
                    left -= due
                    run_id = uuid.uuid4().hex
                    tags = {
                        DEMO: "true",
                        f"{DEMO}/run": run_id,
                        **({"dagster/partition": partition} if partition else {}),
                    }
                    with _told(instance, run_id, tell):
                        result = dg.execute_job(
                            repository.get_reconstructable_job(name),
                            instance,
                            run_config={"execution": {"config": {EXECUTOR: {}}}},
                            tags=tags,
                            asset_selection=sorted(due),
                        )
                    if not result.success:
                        raise SystemExit(_reason(result))
                tell(stage_done=title, partition=partition, ran=len(keys - left), of=len(keys))


def is_down(key: dg.AssetKey) -> bool:
    """Whether a deployment that Dagster counts as fresh no longer answers, say after the machine was restarted."""
    from dagster_mlops.serving import status

    return key == dg.AssetKey("deployment") and not any(d["healthy"] for d in status(STATE / "serving"))


class _told:
    """Tells of each asset and check of a run while the run goes on."""

    def __init__(self, instance: dg.DagsterInstance, run: str, tell: Callable[..., None]) -> None:
        self._instance, self._run, self._tell, self._over = instance, run, tell, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        run_id, cursor, over = "", None, False
        while not over:
            over = self._over.wait(0.3)
            if not run_id:
                runs = self._instance.get_runs(dg.RunsFilter(tags={f"{DEMO}/run": self._run}), limit=1)
                if not runs:
                    continue
                run_id = runs[0].run_id
            new = self._instance.get_records_for_run(run_id, cursor, _SHOWN)
            cursor = new.cursor
            for event in (record.event_log_entry.dagster_event for record in new.records):
                if event and event.event_type == dg.DagsterEventType.STEP_START:
                    self._tell(step=event.step_key)
                elif event and event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                    found = event.asset_check_evaluation_data
                    self._tell(check=f"{found.asset_key.to_user_string()}:{found.check_name}", passed=found.passed)


def _reason(result: Any) -> str:
    errors = [event.step_failure_data.error for event in result.get_step_failure_events()]
    texts = []
    for error in errors:
        while error and error.cause:
            error = error.cause
        texts.append(error.message.strip() if error else "no reason given")
    return "\n".join(texts) or "the run failed"


def main() -> int:
    """Show the child's progress, then what is in production and one traced prediction."""
    from rich.console import Console

    console = Console(highlight=False)
    STATE.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    console.print(f"[bold]dagster-mlops[/]: the whole life of a model, on real flights. State: {STATE}")
    with LOG.open("a") as log:
        reading, writing = os.pipe()
        child = subprocess.Popen(
            [sys.executable, "-m", "assets.demo", str(writing)],
            cwd=ROOT, stdout=log, stderr=log, pass_fds=[writing],
        )  # fmt: skip
        os.close(writing)
        try:
            with os.fdopen(reading) as events, console.status("Loading…") as status:
                failure = _show(events, console, status)
            code = child.wait()
        except KeyboardInterrupt:
            child.terminate()
            raise
    if failure or code:
        console.print(f"[red]✗[/] {failure or f'the worker ended with code {code}'}\nThe log: {LOG}", markup=True)
        return 1
    console.print(f"[green]✓[/] The lifecycle is complete, in {time.monotonic() - began:.0f} s.\n")
    return _summary(console)


def _show(events: IO[str], console: Any, status: Any) -> str:
    began, stage = time.monotonic(), ""
    for line in events:
        event = json.loads(line)
        if "stage" in event:
            stage = event["stage"] + (f" {event['partition'][:7]}" if event["partition"] else "")
            began = time.monotonic()
            status.update(f"{stage} …")
        elif "step" in event:
            status.update(f"{stage}: {event['step']} …")
        elif "check" in event:
            console.print(f"    {'[green]✓[/]' if event['passed'] else '[yellow]![/]'} check {event['check']}")
        elif "stage_done" in event:
            did = f"{event['ran']} of {event['of']} assets" if event["ran"] else "unchanged"
            console.print(f"  [green]✓[/] {stage:42} {did:16} {time.monotonic() - began:6.1f} s")
        elif "failure" in event:
            return event["failure"]
    return ""


def _summary(console: Any) -> int:
    import dagster as dg

    cli = [sys.executable, "-m", "dagster_mlops.cli"]
    subprocess.run([*cli, "status"], check=False)
    with dg.DagsterInstance.get() as instance:
        wanted = dg.AssetRecordsFilter(dg.AssetKey("predictions"), asset_partitions=[REPLAYED])
        [record] = instance.fetch_materializations(wanted, limit=1).records
        materialization = record.asset_materialization
        assert materialization is not None
        request = str(materialization.metadata["example_request_id"].value)
    console.print(f"\n[bold]One prediction, back to the raw data:[/] dagster-mlops trace {request}\n")
    traced = subprocess.run([*cli, "trace", request], check=False).returncode
    console.print(
        "\n[bold]Where to look[/]\n"
        "  make ui          the Dagster UI with this history, http://127.0.0.1:3000\n"
        "  make mlflow-ui   the training run, http://127.0.0.1:5000\n"
        "  make status      what is in production\n"
        "  make stop        stop the deployment that is still serving"
    )
    return traced


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    with os.fdopen(int(sys.argv[1]), "w") as pipe:

        def tell(**event: object) -> None:
            print(json.dumps(event), file=pipe, flush=True)

        try:
            STATE.mkdir(parents=True, exist_ok=True)
            with (STATE / "demo.lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise SystemExit(
                        f"Another demo is at work in {STATE}. Wait for it, or set another STATE."
                    ) from None
                work(tell)
        except BaseException as error:  # noqa: BLE001 (told to the parent)
            traceback.print_exc()
            tell(failure=str(error) or type(error).__name__)
            sys.exit(1)
