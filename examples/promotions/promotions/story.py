"""``python -m promotions.story``: a year of promotions in a minute, in Dagster's instance of ``DAGSTER_HOME``.

A model of January, a worse one that the gate refuses, a better one that a person approves, and a rollback; after each
step the version that is champion, and at the end what the history says about each of these times.
"""

import subprocess
import sys
import time
from datetime import UTC, datetime

import dagster as dg
from typer import echo

from promotions.definitions import (
    KNOWN_AT_DEPARTURE,
    KNOWN_BEFORE,
    MODEL,
    Plan,
    approval,
    champion,
    defs,
    june,
    late_flights,
    late_flights_on_june,
)

CLI = [sys.executable, "-m", "dagster_mlops.cli"]


def command(*arguments: str) -> str:
    """Run a `dagster-mlops` command, show it with its output, and return the output."""
    echo(f"\n$ dagster-mlops {' '.join(arguments)}")
    done = subprocess.run([*CLI, *arguments], capture_output=True, text=True)
    echo(done.stdout + done.stderr)
    return done.stdout


def run(instance: dg.DagsterInstance, *assets: dg.AssetsDefinition, config: object = None) -> str:
    """Materialize assets, show the rows of the gate if the champion is one of them, and return the champion."""
    job = defs.resolve_implicit_global_asset_job_def()
    given = {late_flights.key.path[-1]: config} if config else {}
    run_config = dg.RunConfig(given, loggers={"console": {"config": {"log_level": "ERROR"}}})
    result = job.execute_in_process(
        instance=instance, asset_selection=[asset.key for asset in assets], run_config=run_config
    )
    for event in result.get_asset_materialization_events():
        if event.asset_key == champion.key:
            facts = event.materialization.metadata
            for record in facts["mlflow/decision"].records:  # pyright: ignore[reportAttributeAccessIssue]
                row = record.data
                echo(f"  {row['verdict']:5}  {row['rule']}: {row['why']}")
            return str(facts["mlflow/champion_version"].value)
    return ""


def main() -> None:
    """Tell the story."""
    by_time: list[tuple[str, str]] = []

    def note(step: str, version: str) -> None:
        by_time.append((datetime.now(UTC).isoformat(timespec="milliseconds"), version))
        echo(f"→ {step}: champion is version {version}")
        time.sleep(0.01)  # two moves are not in one millisecond

    everything = [june, late_flights, late_flights_on_june, champion]
    with dg.DagsterInstance.get() as instance:
        echo("January's model, the first:")
        run(instance, *everything, config=Plan(months=[1], columns=KNOWN_BEFORE))
        command("approve", MODEL, "--as", "ann", "--comment", "the first")
        note("January's model", run(instance, champion))
        echo("\nA model that knows the distance only:")
        note("the worse model", run(instance, *everything, config=Plan(months=[1], columns=["distance"])))
        echo("\nA model of five months that knows the delay at departure:")
        better = Plan(months=[1, 2, 3, 4, 5], columns=KNOWN_AT_DEPARTURE)
        note("the better model, before a person has looked", run(instance, *everything, config=better))
        run(instance, approval)
        note("the better model, approved", run(instance, champion))
    command("rollback", MODEL, "--reason", "the delay at departure arrives too late in production")
    echo("\nThe same candidate again:")
    with dg.DagsterInstance.get() as instance:
        note("after the rollback", run(instance, champion))
    command("history", MODEL)
    command("history", "verify", MODEL)
    for when, version in by_time:
        answer = command("history", MODEL, "--at", when)
        assert f"{version}" in answer, "the history says otherwise"


if __name__ == "__main__":
    main()
