"""Fails when MLflow or Optuna no longer needs one of our work-arounds."""

import inspect
import math
import threading
from collections import Counter
from datetime import timedelta
from typing import Any

import importlib_metadata  # which MLflow uses
import mlflow
import numpy as np
import optuna
import pytest
from mlflow import models, sklearn
from mlflow.tracking.request_header import registry
from mlflow.utils import requirements_utils
from mlflow.utils.autologging_utils import get_autologging_config
from sklearn.linear_model import LinearRegression

from dagster_mlops.mlflow import upstream
from tests.support import known_warnings

pytestmark = [*known_warnings.MLFLOW, *known_warnings.MLFLOW_HINTS, *known_warnings.ON_IMPORT]

ROWS = np.array([[1.0], [2.0]])
MODEL = LinearRegression().fit(ROWS, [1.0, 2.0])


def test_the_active_experiment_can_be_neither_read_nor_put_back():
    missing = {"active_experiment", "get_active_experiment", "get_active_experiment_id", "reset_experiment"}
    assert not missing & set(dir(mlflow)), f"use it in place of {upstream.active_experiment}"


def test_what_a_training_sets_for_the_process_cannot_be_put_back():
    missing = {"get_autologging_config", "autologging_config", "reset_autologging", "autologging"}
    assert not missing & set(dir(mlflow)), f"use it in place of {upstream.settings_restored}"
    with upstream.settings_restored():
        sklearn.autolog(log_models=False, silent=True)
        assert get_autologging_config("sklearn", "log_models") is False
    assert get_autologging_config("sklearn", "log_models") is not False


def test_nothing_is_asked_before_a_model_is_logged():
    hooks = {"before_log_model", "on_log_model", "register_hook", "add_hook", "register_callback", "add_callback"}
    assert not hooks & {*dir(mlflow.MlflowClient), *dir(mlflow)}, f"use it in place of {upstream.before_each_model}"


def test_requirements_are_inferred_in_another_process_only():
    own = {"in_process", "infer", "model", "loaded_model"}
    assert not own & set(inspect.signature(models.infer_pip_requirements).parameters), (
        f"use it in place of {upstream.requirements_from}"
    )


def test_a_flavour_loads_what_it_has_stored_by_a_private_function_only():
    assert not {"load_pyfunc", "load_from_path"} & set(dir(sklearn)), f"use it in place of {upstream.load_stored}"


def test_only_the_top_of_the_active_runs_can_be_seen():
    assert not {"active_runs", "get_active_runs", "active_run_stack"} & set(dir(mlflow)), (
        f"use it in place of {upstream.active_runs} and {upstream.active_runs_by_thread}"
    )


def test_a_thread_without_a_run_begins_a_new_one(tmp_path, monkeypatch, empty_database):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_database}")
    mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType] - or an address that was set before would count
    seen = []

    def log():
        mlflow.log_param("of", "the thread")
        run = mlflow.active_run()
        seen.append(run and run.info.run_id)
        mlflow.end_run()

    with mlflow.start_run() as run:
        thread = threading.Thread(target=log)
        thread.start()
        thread.join()
    assert seen != [run.info.run_id], f"MLflow does it by itself: drop {upstream.run_for_threads_without}"


def test_the_answers_before_an_upload_are_dropped(tmp_path, monkeypatch, empty_database):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_database}")
    mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType]
    experiment = mlflow.create_experiment("answers", artifact_location=str(tmp_path))
    options: dict[str, Any] = {"input_example": ROWS, "pip_requirements": ["scikit-learn"]}
    taken: list[Any] = []
    with mlflow.start_run(experiment_id=experiment):
        with upstream.answers_before_upload(lambda folder, answers: taken.append((folder.name, list(answers)))):
            info = sklearn.log_model(MODEL, name="model", serialization_format="cloudpickle", **options)
        sklearn.log_model(MODEL, name="other", serialization_format="cloudpickle", **options)
    assert taken == [("model", pytest.approx([1.0, 2.0]))], "of the first model only"
    assert not {"answers", "predictions", "serving_output"} & set(dir(info)), f"not {upstream.answers_before_upload}"


def test_versions_are_looked_up_for_each_requirement_again(monkeypatch):
    looked_up: list[str] = []
    version = importlib_metadata.version
    monkeypatch.setattr(importlib_metadata, "version", lambda name: looked_up.append(name) or version(name))

    def twice() -> int:
        looked_up.clear()
        for _ in range(2):
            requirements_utils.warn_dependency_requirement_mismatches(["scikit-learn"])
        return len(looked_up)

    with upstream.versions_read_once():
        assert twice() == 1
    assert twice() == 2, f"MLflow has a cache of its own, in place of {upstream.versions_read_once}"


def test_a_client_reads_the_whole_model_before_it_sets_a_tag(tmp_path, monkeypatch):
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    client.create_registered_model("delay")
    registry, reads = upstream.model_registry(client), list[str]()
    read = registry.get_registered_model
    monkeypatch.setattr(registry, "get_registered_model", lambda name: reads.append(name) or read(name))
    registry.set_registered_model_tag("delay", "a", "1")
    assert not reads and client.get_registered_model("delay").tags == {"a": "1"}
    reads.clear()
    client.set_registered_model_tag("delay", "b", "1")
    assert reads, f"MLflow does not any more: drop {upstream.model_registry}"


def test_the_reported_values_of_a_trial_are_shown_by_a_frozen_one_only():
    trial = optuna.create_study().ask()
    for step in range(3):
        trial.report(step / 2, step)
    assert upstream.reported(trial) == {0: 0.0, 1: 0.5, 2: 1.0}
    assert not hasattr(trial, "intermediate_values"), f"use it in place of {upstream.reported}"


@pytest.mark.parametrize(
    ("state", "value", "reports"),
    [
        ("COMPLETE", 0.5, [0.1]),
        ("PRUNED", None, [0.1, 0.2]),
        ("PRUNED", None, [math.nan]),
        ("PRUNED", None, []),
        ("FAIL", None, [0.1]),
    ],
)
def test_a_trial_is_told_without_reading_it_again(monkeypatch, state, value, reports):
    study = optuna.create_study()
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("of", "the user")
    for step, reported in enumerate(reports):
        trial.report(reported, step)
    reads = Counter()
    get_trial = type(study._storage).get_trial

    def counted(self, trial_id):
        reads["trial"] += 1
        return get_trial(self, trial_id)

    monkeypatch.setattr(type(study._storage), "get_trial", counted)
    ended = upstream.tell(study, trial, value, optuna.trial.TrialState[state])
    assert reads["trial"] == 1
    kept = study.trials[0]
    fields = ("number", "state", "value", "params", "user_attrs", "distributions")
    assert [getattr(ended, field) for field in fields] == [getattr(kept, field) for field in fields]
    assert abs(ended.datetime_complete - kept.datetime_complete) < timedelta(seconds=10)
    other = study.ask()
    reads.clear()
    study.tell(other, 1.0)
    assert reads["trial"] == 2, f"Study.tell reads it once as well: use it in place of {upstream.tell}"


def test_a_header_provider_joins_by_entry_point_only():
    public = [name for name, value in vars(registry).items() if inspect.isfunction(value) and "register" in name]
    assert public == [], f"use it in place of {upstream.register_header_provider}"


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_trial_cannot_be_gone_on_with_by_its_number():
    study = optuna.create_study()
    study.enqueue_trial({})
    missing = {"get_trial", "resume_trial", "trial"}
    assert not missing & set(dir(study)), f"use it in place of {upstream.trial_of}"
    study.ask()
    resumed = upstream.trial_of(study, study.trials[0])
    assert isinstance(resumed, optuna.Trial) and resumed.number == 0
