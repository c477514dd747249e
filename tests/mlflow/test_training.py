"""Training runs are always closed and fully described; the alias goes to the better version, once."""

import dataclasses
import hashlib
import importlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import mlflow
import mlflow.sklearn as sklearn_flavor
import pandas as pd
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository  # no public way to run one job of a file
from dagster.components.testing import create_defs_folder_sandbox
from mlflow.artifacts import load_text
from mlflow.models import infer_signature
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from dagster_mlops.core.code_state import CodeState
from dagster_mlops.core.processes import identity
from dagster_mlops.errors import TrackingError
from dagster_mlops.mlflow import (
    MetricChecksComponent,
    MlflowResource,
    PromotionComponent,
    close_orphan_runs_sensor,
    evaluation_asset,
    metric_checks,
    promotion_asset,
    training_asset,
)
from dagster_mlops.mlflow.models import log_model
from dagster_mlops.mlflow.registry import versions as registry
from dagster_mlops.mlflow.registry.models import MlflowModels
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.tool import MlflowTool
from dagster_mlops.mlflow.training import run_facts as training_facts
from dagster_mlops.mlflow.training import step as training
from dagster_mlops.promotion import Improvement
from dagster_mlops.promotion.author import Author
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.gate import Gate
from dagster_mlops.promotion.history.log import moves_of
from dagster_mlops.promotion.moves import promote_version
from dagster_mlops.provenance import Dataset, ModelVersion, Record, Ref, TrainingRun, TrainingSet, records_in
from tests.support import known_warnings, pages

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]

MD5 = "d" * 32
SLOW = ["alembic.command", "dagster", "mlflow.store.tracking.sqlalchemy_store", "sklearn.ensemble"]
DATASET = Dataset(path="training/set.parquet", md5=MD5, repo="/data", rev="abc")
FEATURES = TrainingSet(feature_service="delay", project="p", repo="/features", registry_hash="r" * 64, entity_hash="e")


class Plan(dg.Config):
    """What the training function shall do."""

    auc: float = 0.8
    trouble: str = ""


@dg.asset
def training_set() -> dg.Output[pd.DataFrame]:
    rows = pd.DataFrame({"hour": [0.0, 1.0, 22.0, 23.0] * 5, "late": [0, 0, 1, 1] * 5})
    return dg.Output(rows, metadata={**DATASET.to_metadata(), **FEATURES.to_metadata()})


def fit_and_log(rows: pd.DataFrame, **options) -> None:
    classifier = LogisticRegression().fit(rows[["hour"]], rows["late"])
    complete = {"signature": infer_signature(rows[["hour"]], rows["late"]), "input_example": rows[["hour"]].head(2)}
    sklearn_flavor.log_model(classifier, name="model", pip_requirements=["scikit-learn"], **{**complete, **options})


def train(context: dg.AssetExecutionContext, config: Plan, training_set: pd.DataFrame) -> dg.MaterializeResult | None:
    with Path(os.environ["CALLS"]).open("a") as calls:
        calls.write(f"{context.run.run_id}\n")
    mlflow.log_params({"auc_wanted": config.auc})
    mlflow.log_metrics({"auc": config.auc, "broken": math.nan, "endless": math.inf})
    if config.trouble == "hang":
        mlflow.start_run(nested=True)
        time.sleep(300)
    if config.trouble == "once" and not Path(os.environ["CALLS"] + ".mended").exists():
        Path(os.environ["CALLS"] + ".mended").touch()
        raise ConnectionError("no route to https://ml:hunter2@data")
    if config.trouble == "interrupt twice":
        mlflow.start_run(nested=True)
        signal.raise_signal(signal.SIGINT)
    if config.trouble == "odd":
        raise FileNotFoundError("caf\udce9.csv\0")
    if config.trouble == "interrupt":
        raise KeyboardInterrupt
    if config.trouble == "skops":
        forest = RandomForestClassifier(n_estimators=2).fit(training_set[["hour"]], training_set["late"])
        sklearn_flavor.log_model(forest, name="model", pip_requirements=["scikit-learn"])
    if config.trouble == "run in run":
        mlflow.start_run()
    if config.trouble == "value":
        return dg.MaterializeResult(value="the model")
    if config.trouble == "bare":
        fit_and_log(training_set, signature=False, input_example=None)
        return None
    if config.trouble == "twice":
        fit_and_log(training_set)
    if config.trouble != "no model":
        fit_and_log(training_set)
    return None


model = training_asset(
    registered_model_name="delay", experiment="delay", seed=3, name="model", retry_policy=dg.RetryPolicy(max_retries=1)
)(train)
other = training_asset(registered_model_name="other", experiment="delay", name="other")(train)
WORLD = dg.Definitions(
    assets=[training_set, model, other],
    jobs=[
        dg.define_asset_job(
            "train", dg.AssetSelection.assets(training_set, model), executor_def=dg.in_process_executor
        ),
        dg.define_asset_job(
            "train_other", dg.AssetSelection.assets(training_set, other), executor_def=dg.in_process_executor
        ),
        dg.define_asset_job(
            "train_two",
            executor_def=dg.multiprocess_executor.configured(
                {"max_concurrent": 2, "start_method": {"forkserver": {"preload_modules": SLOW}}}
            ),
        ),
    ],
    resources={"mlflow": MlflowResource(tracking_uri=dg.EnvVar("TEST_MLFLOW_URI"), experiment="delay")},
)
GATES = metric_checks(asset="model", bounds={"auc": (0.6, 0.75)})
GUARDED = promotion_asset(candidate="model", registered_model_name="delay", metric="auc")
GATED = dg.Definitions(
    assets=[dg.AssetSpec("model"), GUARDED],
    asset_checks=GATES,
    jobs=[
        dg.define_asset_job("judge", dg.AssetSelection.checks(*GATES)),
        dg.define_asset_job("promote", dg.AssetSelection.assets(GUARDED)),
    ],
    resources={"mlflow": MlflowResource(tracking_uri=dg.EnvVar("TEST_MLFLOW_URI"), experiment="delay")},
    executor=dg.in_process_executor,
)


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("TEST_MLFLOW_URI", f"sqlite:///{tmp_path}/mlflow.db")
    # Somebody who edits this checkout while tests run would change the state of the code.
    monkeypatch.setattr(training_facts, "code_state", lambda path, **_: CodeState("c0ffee", "main", "f00", b"+dirty\n"))


@pytest.fixture
def resource(tmp_path, empty_database) -> MlflowResource:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return MlflowResource(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="delay")


@pytest.fixture
def client(resource) -> mlflow.MlflowClient:
    return resource.client()


@pytest.fixture
def instance(tmp_path):
    (tmp_path / "home").mkdir()
    with dg.instance_for_test(temp_dir=str(tmp_path / "home")) as instance:
        yield instance


@pytest.fixture(autouse=True)
def _nothing_leaks(_environment):
    yield
    assert mlflow.active_run() is None
    assert not mlflow.is_tracking_uri_set()
    assert not {"MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_HTTP_REQUEST_TIMEOUT"} & set(os.environ)


def materialize(instance, resource, *assets, plan: Plan | None = None, **options):
    config = {"ops": {"model": {"config": (plan or Plan()).model_dump()}}} if training_set in assets else {}
    return dg.materialize(
        [*assets], instance=instance, resources={"mlflow": resource}, run_config=config, raise_on_error=False, **options
    )


def metadata_of(result, name: str) -> dict:
    [event] = [e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey(name)]
    return {key: value.value for key, value in event.materialization.metadata.items()}


def runs_of(client) -> list:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["attributes.start_time ASC"]))


def data_version(event: dg.DagsterEvent) -> str:
    return (event.materialization.tags or {})["dagster/data_version"]


def resolve(ref: Ref) -> Any:
    return MlflowTool().resolve(ref)


def error_of(result) -> str:
    assert not result.success
    return result.get_step_failure_events()[0].step_failure_data.error.to_string()


# Training runs


def test_a_run_says_from_which_code_data_and_dagster_step_it_comes(instance, resource, client):
    result = materialize(instance, resource, training_set, model)
    [run] = client.search_runs([resource.experiment_id(client)], f"datasets.digest = '{MD5}'")
    tags = {name.removeprefix("dagster_mlops."): value for name, value in run.data.tags.items()}
    assert run.info.status == "FINISHED"
    assert tags["code_commit"] == tags["mlflow.source.git.commit"] == "c0ffee"
    assert (tags["dirty"], tags["branch"], tags["seed"], tags["attempt"]) == ("f00", "main", "3", "0")
    assert (tags["feature_service"], tags["registry_hash"]) == ("delay", "r" * 64)
    assert json.loads(tags["datasets"]) == {DATASET.path: MD5}
    assert (tags["dagster_run_id"], tags["dagster_asset"]) == (result.run_id, "model")
    [dataset] = run.inputs.dataset_inputs
    assert json.loads(dataset.dataset.source) == {"uri": "/data/training/set.parquet@abc"}
    assert {file.path for file in client.list_artifacts(run.info.run_id, "code")} == {
        "code/environment.txt",
        "code/licences.json",
        "code/reads.json",
        "code/step.json",
        "code/system.json",
        "code/uncommitted.diff",
    }
    read = json.loads(load_text(f"{run.info.artifact_uri}/code/reads.json"))
    assert read["variables"]["CALLS"] == hashlib.sha256(os.environ["CALLS"].encode()).hexdigest()[:16]
    assert read.keys() == {"variables"}, "the inputs are versioned"
    record = TrainingRun.from_json(run.data.tags[runs.RECORD])
    assert record.upstream == (DATASET.ref, FEATURES.ref, Ref("git", "commit", "c0ffee"))


def test_a_run_holds_what_is_needed_to_run_it_again(instance, resource, client, tmp_path, monkeypatch):
    (tmp_path / "requirements.lock").write_text("mlflow==3.17.2\n")
    state = CodeState("c0ffee", "main", toplevel=str(Path(__file__).parents[2]))
    monkeypatch.setattr(training_facts, "code_state", lambda path, **_: state)
    monkeypatch.setattr(training_facts, "_lock_file", lambda folder: tmp_path / "requirements.lock")
    monkeypatch.setenv("DAGSTER_CURRENT_IMAGE", "registry.example.com/training@sha256:0a")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    job = ReconstructableRepository.for_file(__file__, "WORLD", str(Path(__file__).parents[2])).get_reconstructable_job(
        "train"
    )
    with dg.execute_job(job, instance, run_config={"ops": {"model": {"config": {"auc": 0.7}}}}) as result:
        assert result.success
    [run] = runs_of(client)
    folder = Path(client.download_artifacts(run.info.run_id, "code", str(tmp_path)))
    step, system = (json.loads((folder / name).read_text()) for name in ("step.json", "system.json"))
    assert (step["asset"], step["partition"], step["seed"]) == ("model", "", 3)
    assert step["config"] == {"auc": 0.7, "trouble": ""} and step["function"].endswith("test_training:train")
    assert step["location"].items() >= {"python_file": "tests/mlflow/test_training.py", "fn_name": "WORLD"}.items()
    assert [Record.from_dict(kept) for read in step["reads"] for kept in read["records"]] == [DATASET, FEATURES]
    assert system["container"] == "registry.example.com/training@sha256:0a" and system["cores"] >= 1
    assert system["environment"]["OMP_NUM_THREADS"] == "2"
    assert run.data.tags["dagster_mlops.container"] == system["container"]
    assert (folder / "requirements.lock").read_text() == "mlflow==3.17.2\n"
    assert not (folder / "uncommitted.diff").exists(), "nothing was uncommitted"


def test_the_asset_shows_what_the_run_found_and_names_its_version(instance, resource, client):
    result = materialize(instance, resource, training_set, model)
    seen = metadata_of(result, "model")
    assert seen["mlflow/metric/auc"] == 0.8 and "mlflow/metric/broken" not in seen
    assert [*seen].index("mlflow/metric/auc") < [*seen].index("mlflow/run_id"), "numbers first, then the record"
    assert seen["mlflow/training_seconds"] > 0
    [event] = [e for e in result.get_asset_materialization_events() if e.asset_key == model.key]
    assert data_version(event) == "delay/1"
    run, version = sorted(records_in(seen), key=lambda record: record.role, reverse=True)
    assert isinstance(version, ModelVersion) and isinstance(run, TrainingRun)
    assert version.upstream == (run.ref,) and version.datasets == {DATASET.path: MD5}
    assert registry.version_record(client.get_model_version("delay", "1"), resource.uri) == version


def test_an_exception_closes_the_run_as_failed_and_says_why(instance, resource, client):
    unretried = training_asset(registered_model_name="delay", name="model")(train)
    result = materialize(instance, resource, training_set, unretried, plan=Plan(trouble="once"))
    assert "ConnectionError" in error_of(result)
    [run] = runs_of(client)
    assert run.info.status == "FAILED" and run.data.tags[runs.CLOSED] == "ConnectionError: no route to https://***@data"


def test_an_error_that_no_database_takes_closes_the_run_all_the_same(instance, resource, client):
    unretried = training_asset(registered_model_name="delay", name="model")(train)
    assert "caf" in error_of(materialize(instance, resource, training_set, unretried, plan=Plan(trouble="odd")))
    [run] = runs_of(client)
    assert run.info.status == "FAILED" and run.data.tags[runs.CLOSED] == "FileNotFoundError: caf?.csv"


def test_an_interruption_closes_the_run_as_killed(instance, resource, client):
    assert not materialize(instance, resource, training_set, model, plan=Plan(trouble="interrupt")).success
    [run] = runs_of(client)
    assert run.info.status == "KILLED"


def test_a_second_interruption_does_not_leave_open_what_the_first_one_closes(instance, resource, client, monkeypatch):
    end_run = mlflow.end_run

    def interrupted(*arguments: str) -> None:
        end_run(*arguments)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(mlflow, "end_run", interrupted)
    unretried = training_asset(registered_model_name="delay", name="model")(train)
    assert not materialize(instance, resource, training_set, unretried, plan=Plan(trouble="interrupt twice")).success
    assert [run.info.status for run in runs_of(client)] == ["KILLED", "KILLED"]


@pytest.mark.parametrize(
    ("trouble", "advice"),
    [
        ("no model", "exactly one model, this one logged 0: none"),
        ("twice", "exactly one model, this one logged 2"),
        ("bare", "input_example=X.head(3)"),
        ("skops", 'serialization_format="cloudpickle"'),
        ("run in run", "Leave out mlflow.start_run(), or write mlflow.start_run(nested=True)"),
        ("value", "downstream assets load it from MLflow"),
    ],
)
def test_a_model_that_cannot_be_served_fails_at_once_with_the_edit(instance, resource, client, trouble, advice):
    result = materialize(instance, resource, training_set, model, plan=Plan(trouble=trouble))
    assert advice in error_of(result)
    assert [run.info.status for run in runs_of(client)] == ["FAILED"]
    assert len(Path(os.environ["CALLS"]).read_text().split()) == 1, "a broken contract is not retried"
    assert not client.search_registered_models()


def test_a_model_that_the_function_has_registered_is_registered_once_and_carries_the_record(instance, resource, client):
    @training_asset(registered_model_name="delay")
    def by_hand(training_set: pd.DataFrame) -> None:
        fit_and_log(training_set, registered_model_name="delay")

    result = dg.materialize([training_set, by_hand], instance=instance, resources={"mlflow": resource})
    [version] = client.search_model_versions("name='delay'")
    [event] = [e for e in result.get_asset_materialization_events() if e.asset_key == by_hand.key]
    assert data_version(event) == "delay/1" and runs.RECORD in version.tags


def test_a_name_that_mlflow_would_refuse_after_the_training_is_refused_when_definitions_load():
    for name in ("team/delay", "delay:1", " "):
        with pytest.raises(dg.DagsterInvalidDefinitionError, match=r"is empty|MLflow takes no"):
            training_asset(registered_model_name=name)


@pytest.mark.parametrize("alias", ["v1", "V12", "a/b", "latest", "Latest", "", "über all"])
def test_an_alias_that_mlflow_would_refuse_after_the_training_is_refused_when_definitions_load(alias):
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=r"is empty|not an alias that MLflow accepts"):
        promotion_asset(candidate="model", registered_model_name="delay", metric="auc", alias=alias)
    if alias:
        with pytest.raises(dg.DagsterInvalidDefinitionError, match="compare_with="):
            evaluation_asset(name="e", model="model", rows="rows", label="late", compare_with=alias)


def test_of_several_models_the_returned_one_becomes_the_version(instance, resource, client):
    def log(training_set: pd.DataFrame, epochs: int) -> Any:
        infos = []
        for epoch in range(epochs):
            fitted = LogisticRegression(C=epoch + 1).fit(training_set[["hour"]], training_set["late"])
            infos.append(log_model(fitted, training_set[["hour"]], name=f"epoch_{epoch}"))
            Path(os.environ["CALLS"]).write_text(str(epoch))
        return infos[1] if epochs > 1 else infos[0]

    @training_asset(registered_model_name="chosen", several_models=True)
    def chosen(training_set: pd.DataFrame) -> Any:
        return log(training_set, 3)

    @training_asset(registered_model_name="refused")
    def refused(training_set: pd.DataFrame) -> Any:
        return log(training_set, 3)

    @training_asset(registered_model_name="single")
    def single(training_set: pd.DataFrame) -> Any:
        return log(training_set, 1)

    @training_asset(registered_model_name="forgotten", several_models=True)
    def forgotten(training_set: pd.DataFrame) -> None:
        log(training_set, 2)

    def run(asset: dg.AssetsDefinition, **options: Any) -> dg.ExecuteInProcessResult:
        return dg.materialize([training_set, asset], instance=instance, resources={"mlflow": resource}, **options)

    for asset in (chosen, single):
        run(asset)
    [version] = client.search_model_versions("name='chosen'")
    logged = runs.logged_models(client, client.get_run(version.run_id))
    models = {model.name: model.model_id for model in logged}
    assert len(models) == 3 and version.source == f"models:/{models['epoch_1']}"
    assert MlflowTool().find_model(Ref("mlflow", "training_run", version.run_id, at=resource.uri)) is None
    assert "this one logged 2: epoch_0" in error_of(run(refused, raise_on_error=False))
    assert Path(os.environ["CALLS"]).read_text() == "0", "the second model is refused when it is logged"
    assert "returns the model that becomes the version" in error_of(run(forgotten, raise_on_error=False))


def test_what_a_training_sets_for_the_process_ends_with_it(instance, resource, client):
    from mlflow.utils.import_hooks import get_post_import_hooks

    @training_asset(registered_model_name="first")
    def first(training_set: pd.DataFrame) -> None:
        mlflow.autolog(log_models=False)  # pyright: ignore[reportPrivateImportUsage]
        sklearn_flavor.autolog(log_models=False)
        mlflow.set_registry_uri("sqlite:////nowhere/else.db")
        mlflow.set_registry_uri(resource.uri)
        mlflow.config.enable_async_logging(False)  # pyright: ignore[reportPrivateImportUsage]
        fit_and_log(training_set)

    @training_asset(registered_model_name="second")
    def second(training_set: pd.DataFrame) -> None:
        fit_and_log(training_set)

    registry = mlflow.get_registry_uri()
    variables = {name for name in os.environ if "MLFLOW" in name}
    for asset in (first, second):
        dg.materialize([training_set, asset], instance=instance, resources={"mlflow": resource})
    params = [
        client.get_run(client.get_model_version(name, "1").run_id or "").data.params for name in ("first", "second")
    ]
    assert len(params[0]) > 10 and params[1] == {}
    assert mlflow.get_registry_uri() == registry
    assert {name for name in os.environ if "MLFLOW" in name} == variables
    assert not get_post_import_hooks("lightgbm"), "a library that is imported later is not logged"


def test_known_requirements_are_found_without_another_process(instance, resource, client, monkeypatch):
    import mlflow.utils.requirements_utils as inference

    def another_process(*arguments: Any, **options: Any) -> None:
        raise AssertionError("MLflow starts a process that imports everything")

    monkeypatch.setattr(inference, "_run_command", another_process)
    monkeypatch.setenv("MLFLOW_REQUIREMENTS_INFERENCE_RAISE_ERRORS", "true")

    @training_asset(registered_model_name="delay")
    def pinned(training_set: pd.DataFrame) -> None:
        fitted = LogisticRegression().fit(training_set[["hour"]], training_set["late"])
        sklearn_flavor.log_model(
            fitted,
            name="model",
            signature=infer_signature(training_set[["hour"]], training_set["late"]),
            input_example=training_set[["hour"]].head(2),  # pyright: ignore[reportArgumentType]
        )

    dg.materialize([training_set, pinned], instance=instance, resources={"mlflow": resource})
    version = client.get_model_version("delay", "1")
    folder = mlflow.artifacts.download_artifacts(version.source)  # pyright: ignore[reportPrivateImportUsage]
    pins = Path(folder, "requirements.txt").read_text().splitlines()
    names = {line.partition("==")[0] for line in pins}
    assert {"scikit-learn", "numpy", "mlflow", "skops"} <= names and len(names) == len(pins)


def test_the_models_that_a_dead_process_was_storing_are_marked_as_failed(client, resource):
    run = client.create_run(resource.experiment_id(client))
    pending = client.create_logged_model(run.info.experiment_id, name="half", source_run_id=run.info.run_id)
    done = client.create_logged_model(run.info.experiment_id, name="done", source_run_id=run.info.run_id)
    client.finalize_logged_model(done.model_id, "READY")
    runs.close_run(client, run, "KILLED", "its process died")
    statuses = {model.name: str(model.status) for model in runs.logged_models(client, run)}
    assert statuses == {"half": "FAILED", "done": "READY"} and pending.model_id


def test_a_retry_continues_the_same_run(instance, resource, client):
    result = materialize(instance, resource, training_set, model, plan=Plan(trouble="once"))
    assert result.success
    [run] = runs_of(client)
    assert run.info.status == "FINISHED" and run.data.tags[runs.ATTEMPT] == "1" and runs.CLOSED not in run.data.tags
    assert len(client.search_model_versions("name='delay'")) == 1
    assert metadata_of(result, "model")["mlflow/attempt"] == 1


def test_a_retry_after_a_failed_registration_does_not_train_again(instance, resource, client, monkeypatch):
    real, fails = registry.register, [ConnectionError("registry down")]

    def register(*arguments, **options):
        if fails:
            raise fails.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(training, "register", register)
    assert materialize(instance, resource, training_set, model).success
    assert len(Path(os.environ["CALLS"]).read_text().split()) == 1
    assert [run.info.status for run in runs_of(client)] == ["FINISHED"]
    assert len(client.search_model_versions("name='delay'")) == 1


def test_a_re_execution_from_failure_continues_the_run_and_a_full_one_starts_another(instance, resource, client):
    job = ReconstructableRepository.for_file(__file__, "WORLD", str(Path(__file__).parents[2])).get_reconstructable_job(
        "train"
    )
    config = {"ops": {"model": {"config": {"trouble": "no model"}}}}
    with dg.execute_job(job, instance, run_config=config) as failed:
        assert not failed.success
    again = dg.ReexecutionOptions.from_failure(failed.run_id, instance)
    with dg.execute_job(job, instance, run_config=config, reexecution_options=again) as continued:
        assert not continued.success
    [run] = runs_of(client)
    assert run.data.tags[runs.ATTEMPT] == "1" and run.data.tags[runs.DAGSTER_RUN] == continued.run_id
    mended = {"ops": {"model": {"config": {"trouble": ""}}}}
    for _ in range(2):
        with dg.execute_job(job, instance, run_config=mended, reexecution_options=again) as done:
            assert done.success
    assert [run.info.status for run in runs_of(client)] == ["FAILED", "FINISHED", "FINISHED"]


def test_a_re_execution_that_makes_its_inputs_anew_starts_another_run(instance, resource, client):
    job = ReconstructableRepository.for_file(__file__, "WORLD", str(Path(__file__).parents[2])).get_reconstructable_job(
        "train"
    )
    config, again = {"ops": {"model": {"config": {"trouble": "no model"}}}}, None
    for _ in range(2):
        with dg.execute_job(job, instance, run_config=config, reexecution_options=again) as failed:
            again = dg.ReexecutionOptions(failed.run_id)
    assert [run.data.tags[runs.ATTEMPT] for run in runs_of(client)] == ["0", "0"]


def test_a_run_that_is_recorded_is_never_continued_however_many_came_after_it(instance, resource, client):
    job = ReconstructableRepository.for_file(__file__, "WORLD", str(Path(__file__).parents[2])).get_reconstructable_job(
        "train"
    )
    with dg.execute_job(job, instance) as first:
        assert first.success
    for _ in range(101):
        instance.report_runless_asset_event(dg.AssetMaterialization("model"))
    with dg.execute_job(job, instance, reexecution_options=dg.ReexecutionOptions(first.run_id)) as again:
        assert again.success
    assert [run.data.tags[runs.ATTEMPT] for run in runs_of(client)] == ["0", "0"]


def hanging_worker(client, tmp_path, job: str, asset: str) -> "subprocess.Popen[bytes]":
    """A run worker in a process of its own, whose training has begun, with a nested run, and does not end."""
    config = tmp_path / "run.yaml"
    config.write_text(f"ops: {{{asset}: {{config: {{trouble: hang}}}}}}")
    command = ["job", "execute", "-f", __file__, "-a", "WORLD", "-j", job, "-c", str(config)]
    worker = subprocess.Popen(
        [sys.executable, "-m", "dagster", *command],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},  # this file imports helpers of the tests
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait_for(lambda: len(runs_of(client)) == 2)  # the run and the nested one
    return worker


def test_a_step_that_is_interrupted_closes_its_runs_as_killed(client, tmp_path):
    worker = hanging_worker(client, tmp_path, "train_other", "other")
    try:
        os.kill(worker.pid, signal.SIGINT)  # what terminating the run in Dagster's UI comes to
        _wait_for(lambda: "RUNNING" not in [run.info.status for run in runs_of(client)])
        assert [run.info.status for run in runs_of(client)] == ["KILLED", "KILLED"]
    finally:
        worker.kill()
        worker.wait()


def test_after_kill_9_the_next_run_closes_the_orphan_and_registers_one_version(instance, resource, client, tmp_path):
    worker = hanging_worker(client, tmp_path, "train", "model")
    materialize(instance, resource, training_set, model)
    assert [run.info.status for run in runs_of(client)] == ["RUNNING", "RUNNING", "FINISHED"], "it is alive"
    os.killpg(worker.pid, signal.SIGKILL)  # not waited for: a zombie is dead, too
    time.sleep(0.2)
    materialize(instance, resource, training_set, model)
    worker.wait()
    assert [run.info.status for run in runs_of(client)] == ["KILLED", "KILLED", "FINISHED", "FINISHED"]
    assert len(client.search_model_versions("name='delay'")) == 2


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.usefixtures("own_forkserver")
def test_trainings_in_two_processes_on_a_new_database_do_not_mix(instance, tmp_path):
    job = ReconstructableRepository.for_file(__file__, "WORLD", str(Path(__file__).parents[2])).get_reconstructable_job(
        "train_two"
    )
    plans = {"ops": {"model": {"config": {"auc": 0.7}}, "other": {"config": {"auc": 0.9}}}}
    with dg.execute_job(job, instance, run_config=plans) as result:
        assert result.success
    client = mlflow.MlflowClient(os.environ["TEST_MLFLOW_URI"])
    steps = [run for run in runs_of(client) if runs.TARGET in run.data.tags]
    seen = {run.data.tags[runs.TARGET]: (run.info.status, run.data.metrics["auc"]) for run in steps}
    assert seen == {"model:": ("FINISHED", 0.7), "other:": ("FINISHED", 0.9)}
    assert {v.name for v in client.search_model_versions()} == {"delay", "other"}


def test_the_sensor_closes_what_a_finished_dagster_run_left_open(instance, resource, client):
    dead = materialize(instance, resource, training_set, model, plan=Plan(trouble="no model"))
    experiment = resource.experiment_id(client)
    orphan = client.create_run(experiment, tags={runs.DAGSTER_RUN: dead.run_id})
    nested = client.create_run(experiment, tags={"mlflow.parentRunId": orphan.info.run_id})
    stranger = client.create_run(experiment)
    sensor = close_orphan_runs_sensor()
    context = dg.build_sensor_context(instance=instance, resources={"mlflow": resource})
    sensor(context)
    status = {run.info.run_id: run.info.status for run in runs_of(client)}
    assert (status[orphan.info.run_id], status[nested.info.run_id]) == ("FAILED", "FAILED")
    assert status[stranger.info.run_id] == "RUNNING"
    later = dg.build_sensor_context(instance=instance, resources={"mlflow": resource}, cursor=context.cursor)
    assert "No Dagster run" in str(sensor(later))


def test_a_process_is_dead_only_when_that_is_certain(instance, client, resource):
    host, _, _ = json.loads(runs.owner())

    def alive(*owner):
        run = client.create_run(resource.experiment_id(client), tags={runs.OWNER: json.dumps(owner)})
        return runs.is_alive(client.get_run(run.info.run_id), instance)

    with subprocess.Popen(["sleep", "60"]) as sleeper:
        process = identity(sleeper.pid)
        assert alive(host, sleeper.pid, process) and alive("elsewhere", 1, "1")
        assert alive(f"{socket.gethostname()} pid:[1]", 1, "1"), "another container of this machine"
        assert not alive(host, sleeper.pid, f"an-earlier-boot:{process}") and not alive(host, sleeper.pid, "")
        sleeper.kill()
    assert not alive(host, sleeper.pid, process)


def test_a_tag_that_someone_changed_does_not_stop_the_next_training(instance, resource, client, tmp_path):
    worker = hanging_worker(client, tmp_path, "train", "model")
    [left] = [run for run in runs_of(client) if runs.OWNER in run.data.tags]
    for text in ("{", '["a", "b"]', "[" * 3000, "7", '["a", 1e999, "x"]', '{"host": 1, "pid": 2, "x": 3}'):
        client.set_tag(left.info.run_id, runs.OWNER, text)
        assert runs.is_alive(client.get_run(left.info.run_id), instance) is None, text
    client.set_tag(left.info.run_id, runs.ATTEMPT, "many")
    assert runs.attempt(client.get_run(left.info.run_id)) == 0
    result = materialize(instance, resource, training_set, model)
    told = [event.user_message for event in instance.all_logs(result.run_id)]
    assert any(f"tag {runs.OWNER} of run {left.info.run_id} cannot be read" in text for text in told)
    assert client.get_run(left.info.run_id).info.status == "RUNNING", "it may be alive"
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


POSTPONED = """
from __future__ import annotations
import dagster as dg
import optuna
from dagster_mlops.mlflow import sweep_asset, sweep_trials, training_asset

class Plan(dg.Config):
    rate: float = 0.5

@training_asset(registered_model_name="delay")
def model(context: dg.AssetExecutionContext, config: Plan, rows: int) -> None: ...

@sweep_asset(registered_model_name="delay", metric="auc", direction="maximize", n_trials=1)
def best_model(context: dg.AssetExecutionContext, config: Plan, trial: optuna.Trial, rows: int) -> float: ...

@sweep_trials(name="delay", registered_model_name="delay", metric="auc", direction="maximize", n_trials=1)
def sweep(config: Plan, trial: optuna.Trial, rows: int) -> float: ...
"""


def test_annotations_may_be_postponed(tmp_path, monkeypatch):
    (tmp_path / "postponed_training.py").write_text(POSTPONED)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("postponed_training")
    for asset in (module.model, module.best_model, module.sweep.trials):
        assert "rate" in asset.op.config_schema.config_type.fields and "rows" in asset.keys_by_input_name


def test_a_generator_is_refused_when_definitions_load():
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="plain function"):

        @training_asset(registered_model_name="delay")
        def model():
            yield


def _wait_for(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


# The connection


def test_the_default_experiment_of_a_new_database_keeps_its_artifacts_beside_it(tmp_path):
    client = MlflowResource(tracking_uri=f"sqlite:///{tmp_path}/store/mlflow.db").client()
    assert client.get_experiment("0").artifact_location.startswith(f"file://{tmp_path}/store/mlartifacts/")


def test_a_folder_of_files_is_refused_with_the_sqlite_edit():
    with pytest.raises(TrackingError, match=r"Write tracking_uri='sqlite:////.*mlflow\.db'"):
        MlflowResource(tracking_uri="./mlruns").client()


@pytest.mark.filterwarnings("ignore:.* holds a credential as text:UserWarning")
@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_dead_server_is_named_within_seconds_without_its_password(scheme):
    for limit in (60, 5):  # the first one also imports most of MLflow
        started = time.monotonic()
        with pytest.raises(TrackingError, match=rf"{scheme}://\*\*\*@127\.0\.0\.1:1/") as caught:
            MlflowResource(tracking_uri=f"{scheme}://ml:hunter2@127.0.0.1:1/x").client()
        assert time.monotonic() - started < limit
        assert "hunter2" not in str(caught.value)


# Promotion


@pytest.fixture
def candidate(instance, resource, client):
    """Makes a version with the given metrics the latest one of the asset `model`."""
    client.create_registered_model("delay")
    experiment = resource.experiment_id(client)

    def make(**metrics: float) -> str:
        run_id = client.create_run(experiment).info.run_id
        for name, value in metrics.items():
            client.log_metric(run_id, name, value)
        client.set_terminated(run_id)
        version = str(client.create_model_version("delay", f"/models/{run_id}", run_id).version)
        record = ModelVersion(name="delay", version=version, run_id=run_id, tracking_uri=resource.uri, metrics=metrics)
        client.set_model_version_tag("delay", version, runs.RECORD, record.to_json())
        instance.report_runless_asset_event(dg.AssetMaterialization("model", metadata=record.to_metadata()))
        return version

    return make


def promote(instance, resource, *more, **options):
    asset = promotion_asset(candidate="model", registered_model_name="delay", **{"metric": "auc", **options})
    return materialize(instance, resource, dg.AssetSpec("model"), asset, *more, selection=[asset])


def champion(client) -> str:
    return str(client.get_model_version_by_alias("delay", "champion").version)


def test_the_first_finite_candidate_becomes_champion_and_a_better_one_follows(instance, resource, client, candidate):
    candidate(auc=0.7)
    assert metadata_of(promote(instance, resource), "champion")["mlflow/promoted"] is True
    candidate(auc=0.8)
    result = promote(instance, resource)
    seen = metadata_of(result, "champion")
    assert champion(client) == "2" and seen["mlflow/champion_version"] == 2
    assert (seen["mlflow/champion_before_auc"], seen["mlflow/candidate_auc"]) == (0.7, 0.8)
    [version] = records_in(seen)
    assert isinstance(version, ModelVersion) and version.aliases == ("champion",)
    [event] = result.get_asset_materialization_events()
    assert data_version(event) == "delay/2"
    [first, second] = moves_of(MlflowModels(resource, client), "delay", "champion")
    assert (first.before, first.after, second.before, second.after) == ("", "1", "1", "2")
    assert second.facts["dagster_run_id"] == result.run_id and second.facts["gate"][0]["verdict"] == "holds"
    assert second.kind == "promotion" and second.why == "auc 0.8 against 0.7: improvement 0.1"


def test_a_candidate_that_is_not_better_changes_nothing(instance, resource, client, candidate):
    candidate(auc=0.7)
    promote(instance, resource)
    cases: list[tuple[float, dict[str, Any]]] = [
        (0.7, {}),
        (0.6, {}),
        (math.nan, {}),
        (math.inf, {}),
        (-math.inf, {"greater_is_better": False}),
        (0.705, {"min_improvement": 0.01}),
        (0.9, {"greater_is_better": False}),
    ]
    for auc, options in cases:
        candidate(auc=auc)
        result = promote(instance, resource, **options)
        assert metadata_of(result, "champion")["mlflow/promoted"] is False, (auc, options)
        [event] = result.get_asset_materialization_events()
        assert champion(client) == "1" and data_version(event) == "delay/1"


def test_without_a_champion_a_metric_that_is_not_finite_is_an_error(instance, resource, candidate):
    candidate(auc=math.nan)
    assert "has no 'champion': the candidate's auc is nan" in error_of(promote(instance, resource))


def test_an_infinite_metric_of_the_champion_is_beaten_by_none(instance, resource, client, candidate):
    candidate(auc=math.inf)  # which MLflow's database returns as the largest number
    client.set_registered_model_alias("delay", "champion", "1")
    candidate(auc=0.7)
    promote(instance, resource)
    assert champion(client) == "1"


def test_a_missing_metric_names_those_that_are_there(instance, resource, candidate):
    candidate(auc=0.7, log_loss=0.4)
    assert "has no metric 'f1'; run" in (text := error_of(promote(instance, resource, metric="f1")))
    assert "auc, log_loss" in text


def test_a_candidate_without_a_version_is_an_error_that_names_the_asset(instance, resource, candidate):
    assert "found no version of 'delay' on model; there is no record" in error_of(promote(instance, resource))


@pytest.mark.parametrize(
    "killed_before",
    ["the move", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("the entry", "the head"))],
)
def test_a_promotion_killed_at_any_point_ends_the_same_when_run_again(
    instance, resource, client, candidate, monkeypatch, killed_before
):
    candidate(auc=0.7)
    promote(instance, resource)
    candidate(auc=0.8)
    with monkeypatch.context() as patch:
        name = {"the entry": "append", "the move": "move", "the head": "keep_head"}[killed_before]
        patch.setattr(MlflowModels, name, _Counted(getattr(MlflowModels, name), die_at=1))
        assert "Killed" in error_of(promote(instance, resource))
    again = metadata_of(promote(instance, resource), "champion")["mlflow/promoted"]
    assert again is (killed_before != "the head"), "that one had moved it"
    assert metadata_of(promote(instance, resource), "champion")["mlflow/promoted"] is False
    assert champion(client) == "2"
    moves = moves_of(MlflowModels(resource, client), "delay", "champion")
    assert [(move.before, move.after, move.kind) for move in moves] == [
        ("", "1", "promotion"),
        ("1", "2", "promotion"),
    ]


class _Counted:
    """A function that dies at its n-th call, as a kill at this point would leave things."""

    def __init__(self, function, *, die_at: int) -> None:
        self.function, self.left = function, die_at

    def __get__(self, owner, kind):
        return lambda *arguments, **options: self(owner, *arguments, **options)

    def __call__(self, *arguments, **options):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("Killed")
        return self.function(*arguments, **options)


@pytest.mark.parametrize(("rival_auc", "winner"), [(0.9, "3"), (0.75, "2")])
def test_of_two_promotions_at_the_same_moment_the_better_one_wins(resource, client, candidate, rival_auc, winner):
    candidate(auc=0.7)
    client.set_registered_model_alias("delay", "champion", "1")
    candidate(auc=0.8)
    rival = candidate(auc=rival_auc)

    class Raced(MlflowModels):
        moved = False

        def move(self, name, alias, to, *, expected):
            if not self.moved:  # after the decision, before the move
                self.moved = True
                client.set_registered_model_alias("delay", "champion", rival)
            return super().move(name, alias, to, expected=expected)

    models = Raced(resource, client)
    version = models.version("delay", "2")
    gate = Gate([Improvement(metric="auc")], Case(models, version))
    promote_version(models, version, "champion", gate.judge, Author("test"))
    assert champion(client) == winner


def test_a_champion_set_by_hand_without_any_record_can_be_kept_and_beaten(instance, resource, client, candidate):
    client.create_model_version("delay", "/models/by-hand", client.create_run("0").info.run_id)
    client.set_registered_model_alias("delay", "champion", "1")
    client.log_metric(client.get_model_version("delay", "1").run_id, "auc", 0.75)
    candidate(auc=0.7)
    [kept] = records_in(metadata_of(promote(instance, resource), "champion"))
    assert isinstance(kept, ModelVersion) and kept.version == "1"
    assert kept.upstream[0].id == kept.run_id  # a trace goes on to the run
    candidate(auc=0.8)
    promote(instance, resource)
    assert champion(client) == "3"


def test_a_failed_blocking_check_keeps_the_alias_where_it_is(instance, client, candidate):
    repository = ReconstructableRepository.for_file(__file__, "GATED", str(Path(__file__).parents[2]))

    def run(job: str) -> dg.JobExecutionResult:
        with dg.execute_job(repository.get_reconstructable_job(job), instance) as result:
            return result

    candidate(auc=0.7)
    run("judge")
    evidence = run("promote").get_asset_materialization_events()[0].materialization.metadata
    assert champion(client) == "1" and evidence["mlflow/gates"].value == {"model:metric_auc": True}
    candidate(auc=0.8)  # better, and out of bounds
    run("judge")
    assert "GateError" in error_of(run("promote"))
    assert champion(client) == "1"


# Checks


def test_metric_checks_judge_the_version_that_was_just_trained(instance, resource, client):
    bounds = {"auc": (0.7, 0.9), "broken": (0, None), "endless": (0, None), "absent": (None, 1)}
    result = materialize(
        instance, resource, training_set, model, *metric_checks(asset=model, bounds=bounds, blocking=False)
    )
    verdicts = {e.check_name: (e.passed, e.description) for e in result.get_asset_check_evaluations()}
    assert verdicts["metric_auc"] == (True, "auc 0.8 is between 0.7 and 0.9.")
    assert verdicts["metric_broken"] == (False, "version 1 of 'delay' has no finite metric 'broken'; it has auc.")
    assert verdicts["metric_endless"] == (False, "version 1 of 'delay' has no finite metric 'endless'; it has auc.")
    assert verdicts["metric_absent"][0] is False


def test_a_check_without_any_version_fails(instance, resource):
    untracked = dg.asset(name="model")(lambda: None)
    checks = metric_checks(asset=untracked, bounds={"auc": (0.7, None)})
    result = materialize(instance, resource, untracked, *checks)
    [evaluation] = result.get_asset_check_evaluations()
    assert not evaluation.passed and "no ModelVersion record" in str(evaluation.description)


@pytest.mark.parametrize("bounds", [{}, {"auc": (None, None)}, {"auc": (1, 0)}, {"a b": (0, 1), "a_b": (0, 1)}])
def test_bounds_that_check_nothing_are_refused(bounds):
    with pytest.raises(dg.DagsterInvalidDefinitionError):
        metric_checks(asset="model", bounds=bounds)


# Lineage


@pytest.fixture
def trained(instance, resource) -> tuple[TrainingRun, ModelVersion]:
    seen = metadata_of(materialize(instance, resource, training_set, model), "model")
    version, run = sorted(records_in(seen), key=lambda record: record.role)
    assert isinstance(run, TrainingRun) and isinstance(version, ModelVersion)
    return run, version


def test_runs_and_versions_that_are_there_give_their_records(client, trained):
    run, version = trained
    assert resolve(run.ref).record == run
    client.set_registered_model_alias("delay", "champion", "1")
    answer = resolve(version.ref)
    assert answer.bucket == "accessible" and answer.record.aliases == ("champion",)
    assert answer.record.upstream == (run.ref,)


def test_an_alias_names_a_version_and_a_run_gives_its_files(client, trained, tmp_path):
    run, version = trained
    client.set_registered_model_alias("delay", "champion", "1")
    named = Ref("mlflow", "model_version", "delay@champion", at=run.tracking_uri)
    assert resolve(named).record.ref == version.ref
    for nobody in ("delay@nobody", "nothing@champion"):
        assert resolve(dataclasses.replace(named, id=nobody)).bucket == "deleted"
    files = MlflowTool().files(run.ref, "code")
    assert json.loads(files["step.json"])["asset"] == "model" and files["uncommitted.diff"] == b"+dirty\n"
    assert MlflowTool().files(run.ref, "nothing") == {}
    (tmp_path / "mlflow.db").rename(tmp_path / "moved.db")
    with pytest.raises(TrackingError, match="is not on this machine"):
        MlflowTool().files(run.ref, "code")


def test_a_deleted_run_is_deleted_and_still_known(client, trained):
    run, version = trained
    client.delete_run(run.run_id)
    answer = resolve(run.ref)
    assert answer.bucket == "deleted" and answer.record == run
    client.delete_model_version("delay", version.version)
    assert resolve(version.ref).bucket == "deleted"
    assert resolve(Ref("mlflow", "training_run", "0" * 32, at=run.tracking_uri)).bucket == "deleted"


def test_a_version_whose_files_are_gone_is_faulty(tmp_path, trained):
    run, version = trained
    shutil.rmtree(tmp_path / "mlartifacts")
    assert "are gone from" in resolve(version.ref).reason
    assert resolve(run.ref).bucket == "faulty"


def test_a_run_without_a_record_is_unknown_and_one_with_an_unreadable_record_faulty(client, resource):
    for tags, bucket in (({}, "unknown"), ({runs.RECORD: "{"}, "faulty"), ({runs.RECORD: DATASET.to_json()}, "faulty")):
        run_id = client.create_run("0", tags=tags).info.run_id
        assert resolve(Ref("mlflow", "training_run", run_id, at=resource.uri)).bucket == bucket


def test_a_database_that_is_not_there_is_inaccessible_and_not_created(tmp_path, trained):
    run, version = trained
    (tmp_path / "mlflow.db").rename(tmp_path / "moved.db")
    for ref in (run.ref, version.ref):
        assert resolve(ref).bucket == "inaccessible"
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / "mlflow.db").touch()
    assert "is not an MLflow database" in resolve(run.ref).reason
    assert (tmp_path / "mlflow.db").stat().st_size == 0


def test_a_dead_or_silent_server_is_inaccessible_within_ten_seconds():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (1, silent.getsockname()[1]):
            started = time.monotonic()
            answer = resolve(Ref("mlflow", "model_version", "m/1", at=f"http://127.0.0.1:{port}"))
            assert answer.bucket == "inaccessible" and time.monotonic() - started < 10


def test_a_masked_address_needs_the_environment(monkeypatch):
    ref = Ref("mlflow", "training_run", "0" * 32, at="http://ml:hunter2@127.0.0.1:1")
    assert "Set MLFLOW_TRACKING_URI" in resolve(ref).reason
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://ml:hunter2@127.0.0.1:1")
        assert "hunter2" not in (reason := resolve(ref).reason) and "Start the server" in reason


# YAML


def test_promotion_and_checks_can_be_written_in_yaml():
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=PromotionComponent,
            defs_yaml_contents={
                "type": "dagster_mlops.mlflow.PromotionComponent",
                "attributes": {"candidate": "a/model", "registered_model_name": "delay", "metric": "auc"},
            },
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            [asset] = defs.assets or []
            assert isinstance(asset, dg.AssetsDefinition)
            assert asset.key == dg.AssetKey("champion") and asset.asset_deps[asset.key] == {dg.AssetKey(["a", "model"])}
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=MetricChecksComponent,
            defs_yaml_contents={
                "type": "dagster_mlops.mlflow.MetricChecksComponent",
                "attributes": {"asset": "model", "bounds": {"auc": {"least": 0.7}, "log_loss": {"greatest": 0.5}}},
            },
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            [checks] = defs.asset_checks or []
            assert {key.name for key in checks.check_keys} == {"metric_auc", "metric_log_loss"}


def test_the_example_in_the_docs_runs(instance, resource, client):
    namespace = pages.names(pages.blocks("mlflow.md", "python")[0])
    namespace["defs"].validate_loadable(namespace["defs"])
    assets = [namespace[name] for name in ("training_set", "arrival_delay_model", "champion")]
    assert dg.materialize(assets, instance=instance, resources={"mlflow": resource}).success
    assert client.get_model_version_by_alias("arrival_delay", "champion").run_id == runs_of(client)[0].info.run_id
