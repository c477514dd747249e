"""A promotion that waits, in Dagster's real processes: it holds nothing, survives a kill, and follows a decision."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from dagster_mlops.cli import app
from dagster_mlops.promotion.approval import NOTE
from tests.support import known_warnings
from tests.support.dagster_processes import dagster_processes, wait_until

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.filterwarnings("ignore:Using variable_values and operation_name"),  # of Dagster's GraphQL client
    *known_warnings.MLFLOW,
    *known_warnings.DAGSTER_BETA,
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "promotions"
MODEL = "late_flights"
LOCATION = """
import dagster as dg
from dagster_mlops.mlflow import approval_sensor
from promotions import definitions as example

defs = dg.Definitions(
    assets=example.defs.assets,
    resources=example.defs.resources,
    executor=dg.in_process_executor,
    sensors=[
        approval_sensor(promotion=example.champion, registered_model_name=example.MODEL, minimum_interval_seconds=1)
    ],
)
"""


def test_three_versions_wait_for_people_through_a_kill_of_the_daemon_and_are_promoted(tmp_path, free_port):
    home, state = tmp_path / "dagster", tmp_path / "state"
    home.mkdir()
    (home / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\nconcurrency: {pools: {default_limit: 1, granularity: op}}\n"
    )
    location = tmp_path / "location.py"
    location.write_text(LOCATION)
    port = free_port()
    environment = {"PROMOTIONS_STATE": str(state), "PYTHONPATH": str(EXAMPLE), "PYTHONWARNINGS": "ignore"}
    with (
        dg.DagsterInstance.from_config(str(home)) as instance,
        dagster_processes(home, location, port, environment) as (processes, graphql),
    ):

        def client() -> MlflowClient:
            return MlflowClient(f"sqlite:///{state}/mlflow.db")

        def holder() -> str:
            return str(client().get_registered_model(MODEL).aliases.get("champion", ""))

        def launch(*assets: str, config: dict[str, Any] | None = None) -> dg.DagsterRun:
            options: Any = {"run_config": {"ops": config or {}}, "asset_selection": [[name] for name in assets]}
            run_id = graphql.submit_job_execution("__ASSET_JOB", "location.py", "__repository__", **options)
            return wait_until(lambda: finished(run_id), lambda: processes.log("dagster-webserver"))

        def finished(run_id: str) -> dg.DagsterRun | None:
            run = instance.get_run_by_id(run_id)
            return run if run and run.is_finished else None

        def ask(months: list[int], columns: list[str], *others: str) -> None:
            """A better version, which waits, while no run is open and no slot of the pool is held."""
            plan = {"late_flights": {"config": {"months": months, "columns": columns}}}
            run = launch(*others, "late_flights", "late_flights_on_june", "champion", config=plan)
            assert run.is_success, processes.log("dagster-webserver")
            assert [run.run_id for run in instance.get_runs() if not run.is_finished] == []
            pool = instance.event_log_storage.get_concurrency_info("promotions")
            assert (pool.slot_count, pool.active_slot_count, pool.pending_step_count) == (1, 0, 0)

        def promoted(version: str) -> None:
            wait_until(lambda: holder() == version, lambda: processes.log("dagster-daemon"))

        numbers, delay = ["hour", "distance", "carrier", "origin"], "dep_delay"
        approval = dg.AssetKey("approval")
        ask([1], numbers, "june")
        processes.kill("dagster-daemon")
        processes.start("dagster-daemon", "run")
        assert holder() == ""
        done = CliRunner().invoke(app, ["approve", MODEL, "--as", "ann", "--dagster-home", str(home)])
        assert done.exit_code == 0, done.output
        promoted("1")
        ask([1, 2], [*numbers, delay])
        client().set_model_version_tag(MODEL, "2", NOTE, "bob: by a tag")
        promoted("2")
        ask([1, 2, 3, 4, 5], [*numbers, delay], "approval")
        assert not instance.fetch_materializations(approval, limit=1).records, "a run of everything approves nothing"
        assert holder() == "2"
        assert launch("approval", config={"approval": {"config": {"by": "cleo"}}}).is_success
        promoted("3")
    history = CliRunner().invoke(app, ["history", MODEL, "--dagster-home", str(home)]).stdout
    assert all(f"approval by {name}" in history for name in ("ann", "bob", "cleo"))
