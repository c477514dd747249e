"""A sweep tries what it was told, keeps the best model, and never repeats a finished trial."""

import concurrent.futures
import math
import os
import random
import re
import shutil
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import mlflow
import numpy as np
import optuna
import pytest
import sqlalchemy
from dagster._core.definitions.reconstruct import ReconstructableRepository  # no public way to run one job of a file
from sklearn.linear_model import LogisticRegression

from dagster_mlops.core.model_loading import FORMAT
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.io_manager import mlflow_model_io_manager
from dagster_mlops.mlflow.models.log import log_model
from dagster_mlops.mlflow.registry.models import find_version, load_version
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.runs.signals import delivered_outside_of_databases
from dagster_mlops.mlflow.sweep import loop, sweep_asset, sweep_trials
from dagster_mlops.mlflow.sweep.study import RUN_ID, Search, open_storage, open_study, requeue, settled
from dagster_mlops.mlflow.sweep.trial import CUT_OFF, STATE, TRIAL, close_left, run_trial
from dagster_mlops.provenance import Dataset, ModelVersion
from tests.support import known_warnings, sweep_world
from tests.support.feast_servers import postgres_server
from tests.support.mlflow_processes import SERVER, run_until_killed
from tests.support.sweep_world import OPTIONS, TRIALS, Plan, one, search, steps, training_set, two

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.OPTUNA, *known_warnings.MLFLOW]

RESOURCES: dict[str, Any] = {
    "mlflow": MlflowResource(tracking_uri="sqlite:///mlflow.db"),
    "models": mlflow_model_io_manager,
}
KILLS = int(os.environ.get("DAGSTER_MLOPS_KILLS", "0"))  # rounds of at least two kills each; by default one


@pytest.fixture(autouse=True)
def resource(tmp_path, monkeypatch, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("TEST_MLFLOW_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TEST_STUDIES", f"sqlite:///{tmp_path}/studies/optuna.db")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return MlflowResource(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="sweeps")


@pytest.fixture
def instance(tmp_path):
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as made:
        yield made


def sweep(instance, resource, asset, *, plan: Plan | None = None, **options) -> dg.ExecuteInProcessResult:
    config = {"ops": {asset.key.path[-1]: {"config": (plan or Plan()).model_dump()}}}
    options = {"run_config": config, "raise_on_error": False, **options}
    return dg.materialize([training_set, asset], instance=instance, resources={"mlflow": resource}, **options)


def calls() -> list[list[str]]:
    file = Path(os.environ["CALLS"])
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def study_of(number: int = -1) -> optuna.Study:
    storage = os.environ["TEST_STUDIES"]
    return optuna.load_study(study_name=optuna.get_all_study_names(storage)[number], storage=storage)


def trial_runs(resource) -> list:
    client = resource.client()
    found = client.search_runs([resource.experiment_id(client)], "", order_by=["attributes.start_time ASC"])
    return [run for run in found if TRIAL in run.data.tags]


def agree(resource, study) -> None:
    """The study and MLflow tell the same of each trial, and none is left running."""
    client = resource.client()
    assert not client.search_runs([resource.experiment_id(client)], "attributes.status = 'RUNNING'")
    children = {run.info.run_id: run for run in trial_runs(resource)}
    for trial in settled(study).trials:
        run = children.pop(trial.user_attrs[RUN_ID])
        assert run.data.tags[TRIAL] == str(trial.number) and run.data.tags[STATE] == trial.state.name
        assert run.info.status == ("FAILED" if trial.state.name == "FAIL" else "FINISHED")
        assert run.data.params == {name: str(value) for name, value in trial.params.items()}
        if trial.state.name == "COMPLETE":
            assert run.data.metrics["loss"] == trial.value
    assert all(run.info.status == "KILLED" for run in children.values())


@pytest.mark.pixels
def test_the_best_trials_model_becomes_the_version_and_every_trial_is_a_run_below_it(instance, resource):
    result = sweep(instance, resource, one)
    assert result.success
    [event] = result.asset_materializations_for_node("one")
    study, client = study_of(), resource.client()
    agree(resource, study)
    best = study.best_trial
    record = ModelVersion.from_metadata(event.metadata)
    assert record is not None and record.metrics == {"loss": best.value}
    assert load_version(resource, record).model.alpha == pytest.approx(best.params["alpha"])
    metadata: dict[str, Any] = {key: value.value for key, value in event.metadata.items()}
    assert metadata["optuna/best_trial"] == best.number and metadata["optuna/best_params"] == best.params
    assert (metadata["optuna/complete"], metadata["optuna/pruned"], metadata["optuna/failed"]) == (TRIALS, 0, 0)
    assert metadata["mlflow/figures"].count("data:image/png") == 2
    assert len(event.metadata["optuna/trials"].records) == TRIALS  # pyright: ignore[reportAttributeAccessIssue]
    parent = client.get_run(record.run_id)
    assert parent.data.params["alpha"] == str(best.params["alpha"])
    children = trial_runs(resource)
    assert len(children) == TRIALS
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {record.run_id}
    assert {run.data.tags[runs.DAGSTER_RUN] for run in children} == {result.run_id}
    reported = client.get_metric_history(children[0].info.run_id, "intermediate/loss")
    assert [point.step for point in reported] == [0, 1, 2]
    # Only a trial that was the best so far has stored its model, and the version has a copy of the last of them.
    stored = client.search_logged_models([parent.info.experiment_id])
    values = [trial.values[0] for trial in study.trials]
    records = [value for number, value in enumerate(values) if value == min(values[: number + 1])]
    assert len(stored) == len(records) + 1 < TRIALS + 1
    version = find_version(resource, "one")
    assert version.run_id == record.run_id and metadata["optuna/storage"].startswith("sqlite:///")
    assert {model.tags[FORMAT] for model in stored} == {"skops"}


def test_a_search_does_not_fail_for_its_pictures(instance, resource, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = sweep(instance, resource, one)
    assert result.success
    [event] = result.asset_materializations_for_node("one")
    text = str(event.metadata["optuna/figures"].value)
    assert text.count("is not drawn") == 2 and "sweep_history.png" in text and "mlflow/figures" not in event.metadata


@pytest.mark.thorough
def test_the_same_seed_suggests_the_same_and_parallel_trials_do_not_mix(instance, resource):
    for asset in (one, one, two):
        assert sweep(instance, resource, asset).success
    studies = [study_of(number) for number in range(3)]
    first, second, parallel = ([trial.params for trial in study.trials] for study in studies)
    assert first == second and len(parallel) == TRIALS
    for study in studies:
        assert settled(study).count("COMPLETE") == TRIALS
    agree_on = {run.info.run_id: run for run in trial_runs(resource)}
    for trial in studies[2].trials:
        run = agree_on[trial.user_attrs[RUN_ID]]
        assert run.data.metrics["loss"] == trial.value == trial.params["alpha"]


def test_quick_trials_do_not_flood_the_log_but_news_is_logged_at_once(instance, resource, monkeypatch):
    monkeypatch.setattr(loop, "_LOGGED_EVERY_S", 3600.0)
    assert sweep(instance, resource, one, plan=Plan(trouble="prune")).success
    run = instance.get_runs()[0]
    messages = [entry.user_message for entry in instance.all_logs(run.run_id)]
    logged = {int(number) for message in messages for number in re.findall(rf"/{TRIALS}: trial (\d+) ", message)}
    news, best = {0, TRIALS - 1}, math.inf
    for trial in study_of().trials:
        value = math.inf if trial.value is None or trial.state.name == "PRUNED" else trial.value
        if trial.state.name == "PRUNED" or value < best:
            news.add(trial.number)
        best = min(best, value)
    assert logged == news and len(news) < TRIALS


@pytest.mark.thorough
def test_the_re_execution_of_a_finished_sweep_searches_anew(instance, resource):
    repository = ReconstructableRepository.for_file(sweep_world.__file__, "WORLD")
    job, run_id = repository.get_reconstructable_job("sweep_one"), None
    for _ in range(2):
        options = dg.ReexecutionOptions(parent_run_id=run_id) if run_id else None
        with dg.execute_job(job, instance, reexecution_options=options) as result:
            assert result.success
        run_id = result.run_id
    client = resource.client()
    for version in client.search_model_versions("name='one'"):
        children = [run for run in trial_runs(resource) if run.data.tags[runs.PARENT] == version.run_id]
        assert len(children) == TRIALS, "each version has its own search"


def test_pruned_and_failed_trials_are_told_apart_and_do_not_end_the_sweep(instance, resource):
    assert sweep(instance, resource, one, plan=Plan(trouble="prune")).success
    study = study_of()
    agree(resource, study)
    assert (settled(study).count("PRUNED"), settled(study).count("COMPLETE")) == (2, TRIALS - 2), "trials 2 and 5"
    result = sweep(instance, resource, two, plan=Plan(trouble="fail some"))
    assert result.success
    study = study_of()
    assert settled(study).count("FAIL") == 2 and len(settled(study).trials) == TRIALS
    failed = next(trial for trial in study.trials if trial.state.name == "FAIL")
    said = resource.client().get_run(failed.user_attrs[RUN_ID]).data.tags[runs.CLOSED]
    assert "no memory on gpu at https://***@node" in said and "search" in said


@pytest.mark.parametrize(
    ("trouble", "trials", "says"),
    [
        ("fail", 4, "4 of 4 trials failed, and max_failed is 3"),
        ("no model", 1, "a trial logs exactly one model, this one logged 0"),
        pytest.param(
            "text", 1, "returns the value of the metric, a number; this one returned 'much'", marks=pytest.mark.thorough
        ),
    ],
)
def test_what_every_trial_would_do_again_ends_the_sweep_at_once(instance, resource, trouble, trials, says):
    for asset, begun in ((one, 0), (two, 2)):
        Path(os.environ["CALLS"]).unlink(missing_ok=True)
        result = sweep(instance, resource, asset, plan=Plan(trouble=trouble))
        [failure] = result.get_step_failure_events()
        assert says in str(failure.step_failure_data) or asset is two
        assert len([call for call in calls() if call[0] == "start"]) <= trials + begun
    client = resource.client()
    assert not client.search_runs([resource.experiment_id(client)], "attributes.status = 'RUNNING'")
    assert not client.search_model_versions()


def test_a_value_that_is_no_number_fails_its_trial_only(instance, resource):
    assert sweep(instance, resource, one, plan=Plan(trouble="nan")).success
    assert [trial.state.name for trial in study_of().trials].count("FAIL") == 1


def test_native_options_of_optuna_are_the_users(instance, resource):
    options = {**OPTIONS, "storage": None, "n_trials": 50}
    grid = sweep_asset(
        registered_model_name="grid",
        name="grid",
        sampler=lambda seed: optuna.samplers.GridSampler({"alpha": [1.0, 2.0], "solver": ["svd"]}, seed=seed),
        pruner=optuna.pruners.NopPruner,
        enqueue=[{"alpha": 7.0, "solver": "cholesky", "alhpa": 1.0}],
        **options,
    )(search)
    result = sweep(instance, resource, grid)
    assert result.success
    [warned] = [e.user_message for e in instance.all_logs(result.run_id) if "Correct `enqueue`" in e.user_message]
    assert "was to try alhpa, but the function only asked for alpha, solver" in warned
    assert {(call[2], call[3]) for call in calls() if call[0] == "done"} == {
        ("7.0", "cholesky"), ("1.0", "svd"), ("2.0", "svd"),
    }  # fmt: skip
    # Without an address, studies lie where Dagster keeps its own things.
    assert stat.S_IMODE(Path(instance.storage_directory(), "optuna.db").stat().st_mode) == 0o600
    brief = sweep_asset(registered_model_name="brief", name="brief", timeout=0.2, **options)(search)
    result = sweep(instance, resource, brief, plan=Plan(sleep=0.15))
    [event] = result.asset_materializations_for_node("brief")
    assert event.metadata["optuna/complete"].value in range(1, 4), "0.2 s hold two trials of 0.15 s"


@pytest.mark.parametrize(("told", "ends"), [(True, ("FINISHED", "COMPLETE")), (False, ("KILLED", CUT_OFF))])
def test_a_trial_that_was_killed_at_its_end_is_finished_if_the_study_knows_its_value(resource, told, ends):
    storage = open_storage(os.environ["TEST_STUDIES"])
    study = open_study(storage, "study", direction="minimize")
    with resource.activate() as client:
        parent = client.create_run(resource.experiment_id(client))
        trial = study.ask()
        trial.suggest_float("alpha", 0, 1)
        # All was logged; it dies before it has told the study, or before it has closed its run.
        tags = {runs.PARENT: parent.info.run_id, TRIAL: "0", STATE: "COMPLETE"}
        child = client.create_run(parent.info.experiment_id, tags=tags)
        trial.set_user_attr(RUN_ID, child.info.run_id)
        if told:
            study.tell(trial, 0.5)
        requeue(study)
        requeue(study)
        assert close_left(Search(study, client=client, parent=parent)) == 1
        run = client.get_run(child.info.run_id)
    assert (run.info.status, run.data.tags[STATE]) == ends
    again = [other.system_attrs["fixed_params"] for other in study.trials if other.state.name == "WAITING"]
    assert again == ([] if told else [trial.params]) and len(settled(study).trials) == int(told)
    storage.remove_session()
    storage.engine.dispose()


def test_what_was_queued_is_tried_also_when_the_process_died_before_it_asked(resource):
    storage = open_storage(os.environ["TEST_STUDIES"])
    champion = {"alpha": 7.0, "solver": "svd"}
    study = open_study(storage, "study", direction="minimize", enqueue=[champion])
    first = study.ask()
    requeue(study)  # nothing was suggested yet
    study = open_study(storage, "study", direction="minimize", enqueue=[champion])
    again = study.ask()
    assert again.suggest_float("alpha", 1e-3, 1e3) == 7.0
    requeue(study)  # one of two was
    last = study.ask()
    suggested = last.suggest_float("alpha", 1e-3, 1e3), last.suggest_categorical("solver", ["svd", "cholesky"])
    assert suggested == (7.0, "svd") and [first.number, again.number, last.number] == [0, 1, 2]
    storage.remove_session()
    storage.engine.dispose()


def test_a_trials_run_tells_what_was_returned_whatever_else_the_function_has_logged(resource):
    """Optuna's own memory, and no asset around it."""
    study = optuna.create_study(direction="maximize")

    def objective(trial: optuna.Trial) -> float:
        chosen = [trial.suggest_float("rate", 0, 1), trial.suggest_float("width", 0, 1)]
        mlflow.log_param("rate", round(chosen[0], 2))
        for epoch in range(3):
            mlflow.log_metric("auc", 0.9 - epoch / 10, step=epoch)
        for step in range(1100):  # more than MLflow takes in a request
            trial.report(0.5, step)
        log_model(LogisticRegression().fit([[0.0], [1.0]], [0, 1]), np.array([[0.0], [1.0]]))
        return 0.75

    with resource.activate() as client, mlflow.start_run() as parent:
        asked = study.ask()
        run_trial(objective, Search(study, "auc", client=client, parent=parent), asked)
    [child] = trial_runs(resource)
    assert child.data.metrics["auc"] == 0.75 and child.data.metrics["intermediate/auc"] == 0.5
    assert len(client.get_metric_history(child.info.run_id, "intermediate/auc")) == 1100
    assert child.data.params == {"rate": str(round(asked.params["rate"], 2)), "width": str(asked.params["width"])}


def test_a_trial_that_somebody_runs_is_not_run_by_another(resource):
    """The sensor and a backfill may ask for the same one at the same time."""
    study = optuna.create_study()
    with resource.activate() as client:
        parent = client.create_run(resource.experiment_id(client))
        tags = {runs.PARENT: parent.info.run_id, TRIAL: "0", runs.OWNER: "another process"}
        child = client.create_run(parent.info.experiment_id, tags=tags)
        with pytest.raises(TrainingRunError, match=r"trial 0 of .* is being run by another process"):
            close_left(Search(study, client=client, parent=parent), only=0, is_alive=lambda run: True)
        assert client.get_run(child.info.run_id).info.status == "RUNNING"


def once_called(times: int, pause: float) -> Callable[[], bool]:
    """Says when trials have noted something so many times more, and a pause has passed."""
    begun, seen = len(calls()), []

    def due() -> bool:
        if not seen and len(calls()) - begun >= times:
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() - seen[0] > pause

    return due


@pytest.mark.parametrize("name", ["one", "two"])
def test_an_interrupted_sweep_stops_at_once_and_closes_what_it_began(instance, resource, name):
    environment = {key: os.environ[key] for key in ("TEST_MLFLOW_URI", "TEST_STUDIES", "CALLS")}
    environment["TEST_SLEEP"] = "300"
    due = once_called(1 if name == "one" else 2, 0.5)
    started = time.monotonic()
    run_until_killed(instance, sweep_world.__file__, f"sweep_{name}", environment, kill_after=due, by=signal.SIGINT)
    assert time.monotonic() - started < 60, "it does not wait for the trials to end"
    client, study = resource.client(), study_of()
    ended = [run.info.status for run in client.search_runs([resource.experiment_id(client)])]
    assert "KILLED" in ended and set(ended) <= {"KILLED", "FAILED"}
    # What was cut off waits for the next attempt.
    assert {trial.state.name for trial in study.trials} == {"FAIL", "WAITING"} and not settled(study).trials


def ask_while_interrupted() -> None:
    """In a process: a query that is interrupted gives its answer, and the interruption comes right after it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    answers, began = [], time.monotonic()
    with sqlalchemy.create_engine("sqlite://").connect() as connection:
        # A function that sqlite calls: what is raised in it would come out as an error of sqlite.
        driver: Any = connection.connection.driver_connection
        driver.create_function("pause", 0, lambda: time.sleep(0.3))
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            with delivered_outside_of_databases():
                answers.extend(connection.execute(sqlalchemy.text("select 7, pause()")).one())
                time.sleep(30)
        except KeyboardInterrupt:
            handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
            os._exit(0 if answers == [7, None] and handled and time.monotonic() - began < 5 else 1)
    os._exit(2)


def test_an_interruption_waits_until_no_database_is_asked():
    process = SERVER.Process(target=ask_while_interrupted)
    process.start()
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.thorough
def test_studies_live_in_postgres_too(instance, resource, monkeypatch):
    with postgres_server() as server:
        monkeypatch.setenv("TEST_STUDIES", server.get_uri())
        # Processes that find an empty database at the same moment create its tables at the same moment.
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            for storage in pool.map(open_storage, [server.get_uri()] * 3):
                storage.engine.dispose()
        result = sweep(instance, resource, two)
        assert result.success
        study = study_of()
        agree(resource, study)
        assert settled(study).count("COMPLETE") == TRIALS
        address = str(result.asset_materializations_for_node("two")[0].metadata["optuna/storage"].value)
        assert address.startswith("postgresql://***@")


def test_a_storage_that_does_not_answer_is_told(instance, resource, monkeypatch, free_port):
    monkeypatch.setenv("TEST_STUDIES", f"postgresql://ml:hunter2@127.0.0.1:{free_port()}/studies")
    [failure] = sweep(instance, resource, one).get_step_failure_events()
    said = str(failure.step_failure_data.error)
    assert "the storage of the sweep at postgresql://***@127.0.0.1" in said and "hunter2" not in said
    assert not calls()


def test_a_sweep_without_a_trial_argument_or_with_a_wrong_direction_is_refused():
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="needs an argument `trial`"):
        sweep_asset(registered_model_name="x", n_trials=1, **OPTIONS)(lambda training_set: 1.0)
    checked = {"n_trials": 1, "check_specs": [dg.AssetCheckSpec("fine", asset="x")], **OPTIONS}
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=r"not results of check_specs=\['fine'\]"):
        sweep_asset(registered_model_name="x", **checked)
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=r"not results of check_specs=\['fine'\]"):
        sweep_trials(name="x", registered_model_name="x", **checked)
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="'maximize' or 'minimize'"):
        sweep_asset(registered_model_name="x", n_trials=1, metric="auc", direction="up")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["one", "two"] if KILLS else ["two"])
def test_a_killed_sweep_goes_on_where_it_was(instance, resource, name):
    """Kill at a random moment, again and again, then let it finish: each trial has ended once, and once only."""
    environment = {key: os.environ[key] for key in ("TEST_MLFLOW_URI", "TEST_STUDIES", "CALLS")}
    environment["TEST_SLEEP"] = "0.1"
    moments, file, job = random.Random(f"{name}{KILLS}"), sweep_world.__file__, f"sweep_{name}"
    for kill in range(KILLS or 1):
        Path(os.environ["CALLS"]).unlink(missing_ok=True)
        studies = len(optuna.get_all_study_names(os.environ["TEST_STUDIES"])) if kill else 0
        last, interrupted = None, 0
        while True:
            # Two attempts are cut off somewhere between their first trial and the end of the recording.
            due = once_called(moments.randint(1, TRIALS), moments.uniform(0, 0.3)) if interrupted < 2 else None
            last, code = run_until_killed(instance, file, job, environment, again=last, kill_after=due)
            if code == 0:
                break
            interrupted += 1
        assert len(optuna.get_all_study_names(os.environ["TEST_STUDIES"])) == studies + 1
        study = study_of()
        assert len(settled(study).trials) == settled(study).count("COMPLETE") == TRIALS
        assert not [trial for trial in study.trials if not trial.state.is_finished()]
        agreed = {trial.user_attrs[RUN_ID] for trial in settled(study).trials}
        mine = [run for run in trial_runs(resource) if run.data.tags["dagster_mlops.study"] == study.study_name]
        assert {run.info.run_id for run in mine if run.info.status == "FINISHED"} == agreed
        assert {run.info.status for run in mine} <= {"FINISHED", "KILLED"}
        client = resource.client()
        assert not client.search_runs([resource.experiment_id(client)], "attributes.status = 'RUNNING'")
        [version] = [v for v in client.search_model_versions(f"name='{name}'") if int(v.version) == kill + 1]
        assert client.get_run(version.run_id).data.metrics["loss"] == study.best_value


@pytest.mark.thorough
def test_each_trial_can_be_a_step_of_its_own(instance, resource):
    environment = {key: os.environ[key] for key in ("TEST_MLFLOW_URI", "TEST_STUDIES", "CALLS")}
    assets: list[Any] = [training_set, *steps.assets]
    resources: dict[str, Any] = {"mlflow": resource}

    def tick(cursor: str | None) -> Any:
        return steps.sensor(dg.build_sensor_context(instance, cursor=cursor))

    def run(key: str, **options) -> dg.ExecuteInProcessResult:
        config = {"ops": {"steps_trials": {"config": {}}}} if key == "steps_trials" else {}
        options = {"run_config": config, "raise_on_error": False, **options}
        return dg.materialize(assets, instance=instance, resources=resources, selection=f"key:{key}", **options)

    assert "Materialize steps_study" in tick(None).skip_message
    assert run("training_set").success and run("steps_study").success
    asked = tick(None)
    keys = [request.partition_key for request in asked.run_requests]
    assert len(keys) == 3 and keys == instance.get_dynamic_partitions("steps_trials")
    [failure] = failures(run("steps"))
    assert "3 trials of steps-" in str(failure.user_failure_data), "no trial has ended"

    # One is killed while it runs, and run again: it goes on with the parameters that it had.
    environment["TEST_SLEEP"] = "300"
    _, code = run_until_killed(
        instance, sweep_world.__file__, "steps_trial", environment, partition=keys[0], kill_after=once_called(1, 0.5)
    )
    assert code == -signal.SIGKILL
    [was] = [call for call in calls() if call[0] == "start"]
    assert "0 of 3 trials have ended" in tick(asked.cursor).skip_message
    for key in keys:
        assert failures(run("steps_trials", partition_key=key)) == []
    assert next(call[1:] for call in calls() if call[0] == "done") == was[1:]
    assert run("steps_trials", partition_key=keys[1]).success
    assert len([call for call in calls() if call[0] == "done"]) == 3, "what has ended is not repeated"

    last = tick(asked.cursor)
    assert [request.asset_selection for request in last.run_requests] == [[dg.AssetKey("steps")]]
    newer = Dataset(path="rows.parquet", md5="0" * 32, repo="/data")
    made = dg.AssetMaterialization("training_set", metadata=newer.to_metadata())
    instance.report_runless_asset_event(made)
    [failure] = failures(run("steps"))
    assert "were materialized again since trial" in str(failure.user_failure_data)
    assert run("training_set").success
    result = run("steps")
    assert result.success and "start" in tick(last.cursor).skip_message
    study = study_of()
    record = ModelVersion.from_metadata(result.asset_materializations_for_node("steps")[0].metadata)
    assert record is not None and record.metrics == {"loss": study.best_value}
    ended = [run.info.status for run in trial_runs(resource)]
    assert sorted(ended) == ["FINISHED", "FINISHED", "FINISHED", "KILLED"]
    client = resource.client()
    assert not client.search_runs([resource.experiment_id(client)], "attributes.status = 'RUNNING'")


def test_a_sweep_of_steps_takes_a_prefix_and_its_model_an_io_manager():
    made = sweep_trials(
        name="x", registered_model_name="x", n_trials=1, key_prefix="models", io_manager_key="models", **OPTIONS
    )(search)
    keys = [asset.key.to_user_string() for asset in made.assets]
    assert keys == ["models/x_study", "models/x_trials", "models/x"]
    assert [asset.get_io_manager_key_for_asset_key(asset.key) for asset in made.assets] == [
        "io_manager", "io_manager", "models"
    ]  # fmt: skip
    resources = {"mlflow": MlflowResource(tracking_uri="sqlite:///mlflow.db"), "models": mlflow_model_io_manager}
    defs = dg.Definitions([training_set, *made.assets], sensors=[made.sensor], resources=resources)
    dg.Definitions.validate_loadable(defs)


def failures(result: dg.ExecuteInProcessResult) -> list[Any]:
    return [event.step_failure_data for event in result.get_step_failure_events()]


@pytest.mark.parametrize("page", ["mlflow_models", "mlflow_sweeps"])
def test_the_examples_of_the_pages_load(page):
    text = Path(__file__).parents[2].joinpath("docs", f"{page}.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        names: dict[str, Any] = {}
        exec(compile(block, f"{page}.md", "exec"), names)
        if "assets=" in block:
            dg.Definitions.validate_loadable(names["defs"])
