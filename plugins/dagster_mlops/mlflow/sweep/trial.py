"""One trial of a sweep: a child of the sweep's MLflow run, with the trial's parameters, values and model."""

import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import dagster as dg

from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow import upstream
from dagster_mlops.mlflow.lazy import Metric, MlflowClient, Run, entities, mlflow, optuna
from dagster_mlops.mlflow.models.log import deferred
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.server.client import INVALID, refused
from dagster_mlops.mlflow.sweep.study import RUN_ID, Objective, Search, settled
from dagster_mlops.provenance import NAMESPACE, mask_credentials

TRIAL, STATE, STUDY = f"{NAMESPACE}.trial", f"{NAMESPACE}.trial_state", f"{NAMESPACE}.study"
"""Tags of a trial's MLflow run: its number, its state, and its study."""
CUT_OFF = "CUT_OFF"
"""The state of a trial that died with its process; Optuna's states are the others."""
INTERMEDIATE = "intermediate/"
"""Start of the names of the metrics with the values that a trial reports while it runs."""

_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}
# A sweep continues after a failed trial, but not after these errors, which each other trial would raise, too.
_FOR_ALL = (TrainingRunError, dg.Failure, dg.RetryRequested)


def run_trial(
    objective: Objective,
    search: Search,
    trial: "optuna.Trial",
    *,
    earlier: "Callable[[], Sequence[optuna.trial.FrozenTrial]] | None" = None,
    stopped: Callable[[], bool] = lambda: False,
    exhausted: Callable[[], None] = lambda: None,
) -> "optuna.trial.FrozenTrial | None":
    """Run a trial, log it, and report it to the study, unless the sweep was `stopped` meanwhile.

    `earlier` returns the trials that have ended; by default the storage is asked. `exhausted` is called when the
    sampler has nothing left to suggest.

    Raises:
        TrainingRunError: the function logged no model or several, or did not return a number.
    """
    study = search.study
    tags = {TRIAL: str(trial.number), STUDY: study.study_name, runs.OWNER: runs.owner()}
    tags[runs.DAGSTER_RUN] = search.dagster_run_id
    with _child(search.parent, f"trial {trial.number}", tags) as child:
        trial.set_user_attr(RUN_ID, child.run.info.run_id)
        waiting: list[Callable[[], Any]] = []
        token = deferred.set(waiting)
        value, error = None, ""
        try:
            value = objective(trial)
        except optuna.TrialPruned:
            state = "PRUNED"
        except _FOR_ALL:
            raise
        except Exception as failure:  # noqa: BLE001 — any error of the function fails its trial
            state, error = "FAIL", "".join(traceback.format_exception(failure))
        else:
            state = "COMPLETE" if _is_value(value, study.direction.name) else "FAIL"
            error = "" if state == "COMPLETE" else f"the value is {value}"
        finally:
            deferred.reset(token)
        value = float(value) if value is not None and state == "COMPLETE" else None
        child.status = "KILLED"
        if stopped():
            return None
        if value is not None:
            _keep_model(search, child.run, waiting, value, earlier or partial(study.get_trials, deepcopy=False))
        _log(search, child.run, trial, state, value, error)
        if stopped():
            return None
        try:
            ended = upstream.tell(study, trial, value, getattr(optuna.trial.TrialState, state))
        except RuntimeError:
            # A sampler with nothing left to suggest stops the study, which Optuna allows in its own loop only: the
            # trial has ended nevertheless.
            ended = study.get_trials(deepcopy=False)[trial.number]
            if not ended.state.is_finished():
                raise
            exhausted()
        child.status = _STATUS[state]
        return ended


def close_left(
    search: Search, *, only: int | None = None, is_alive: Callable[[Run], bool | None] = lambda run: False
) -> int:
    """Close the runs that a dead process left open: with the state of their trial in the study, or as killed.

    `only` is the number of one trial; by default, all are closed.

    Raises:
        TrainingRunError: the run `is_alive`.
    """
    client, parent = search.client, search.parent.info
    ended = {trial.user_attrs.get(RUN_ID): trial for trial in settled(search.study).trials}
    tags = {runs.PARENT: parent.run_id, **({} if only is None else {TRIAL: str(only)})}
    open_runs = list(runs.search(client, [parent.experiment_id], tags, running=True))
    for run in open_runs:
        if is_alive(run):
            raise TrainingRunError(
                f"trial {run.data.tags[TRIAL]} of {search.study.study_name} is being run by "
                f"{run.data.tags.get(runs.OWNER)} for Dagster run {run.data.tags.get(runs.DAGSTER_RUN)}. Wait for it "
                "or terminate it, then re-run."
            )
        if trial := ended.get(run.info.run_id):
            # Killed between the end of the trial and that of the run: everything was logged.
            client.set_terminated(run.info.run_id, _STATUS[trial.state.name])
        else:
            client.set_tag(run.info.run_id, STATE, CUT_OFF)
            runs.close_run(client, run, "KILLED", "its process died without closing it")
    return len(open_runs)


@dataclass
class _Child:
    run: Run
    status: str = "FAILED"  # at its end


@contextmanager
def _child(parent: Run, name: str, tags: Mapping[str, str]) -> Iterator[_Child]:
    """A child of the sweep's run, active in this thread and closed however the block ends."""
    child = _Child(
        mlflow.start_run(
            run_name=name,
            nested=True,
            experiment_id=parent.info.experiment_id,
            # With `parent_run_id`, MLflow would request the parent for each trial.
            tags={**tags, runs.PARENT: parent.info.run_id},
            log_system_metrics=False,
        )
    )
    try:
        yield child
    except BaseException as error:
        child.status = "FAILED" if isinstance(error, Exception) else "KILLED"
        # A failure here must not replace the error: an interrupt would become a failure.
        with suppress(Exception):
            _end(child, parent)
        raise
    _end(child, parent)


def _end(child: _Child, parent: Run) -> None:
    """Close the runs that the function left open, and then the trial's own."""
    while (active := mlflow.active_run()) is not None and active.info.run_id != parent.info.run_id:
        mlflow.end_run(child.status)
        if active.info.run_id == child.run.info.run_id:
            break


def _keep_model(
    search: Search,
    run: Run,
    waiting: list[Callable[[], Any]],
    value: float,
    earlier: "Callable[[], Sequence[optuna.trial.FrozenTrial]]",
) -> None:
    """Store the trial's model if it is the best so far.

    Raises:
        TrainingRunError: the trial logged no model, or several.
    """
    study, models = search.study, len(waiting) or len(runs.logged_models(search.client, run))
    if models != 1:
        raise TrainingRunError(
            f"a trial logs exactly one model, this one logged {models}. Call dagster_mlops.mlflow.models.log_model("
            "model, X) once before returning the value; the model is stored only if the trial is the best so far."
        )
    sign = 1 if study.direction.name == "MAXIMIZE" else -1
    # Of trials with equal values, the best is the earliest for Optuna, which need not be the first to end.
    if waiting and all(
        sign * value >= sign * t.value for t in earlier() if t.state.name == "COMPLETE" and t.value is not None
    ):
        waiting[0]()


def _log(search: Search, run: Run, trial: "optuna.Trial", state: str, value: float | None, error: str) -> None:
    """Log a trial's values, parameters and state to its run."""
    client, metric, run_id = search.client, search.metric, run.info.run_id
    began = int(trial.datetime_start.timestamp() * 1000) if trial.datetime_start else run.info.start_time
    metrics = [
        entities.Metric(f"{INTERMEDIATE}{metric}", float(reported), began, step)
        for step, reported in sorted(upstream.reported(trial).items())
    ]
    if value is not None:
        metrics.append(final_point(client, run_id, metric, value))
    tags = [entities.RunTag(STATE, state)]
    if error:
        tags.append(entities.RunTag(runs.CLOSED, mask_credentials(error)[-2000:]))
    params = [entities.Param(name, str(value)) for name, value in trial.params.items()]
    # At once, unless that is too much, or the function has logged a param of the same name with another value.
    if refused(INVALID, lambda: client.log_batch(run_id, metrics=metrics, params=params, tags=tags)):
        client.log_batch(run_id, metrics=metrics, tags=tags)
        log_params(client, run_id, trial.params)


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    """Log parameters, except those that the run already has with another value, which MLflow cannot change."""
    every = [entities.Param(name, str(value)) for name, value in params.items()]
    if refused(INVALID, lambda: client.log_batch(run_id, params=every)):
        logged = client.get_run(run_id).data.params
        client.log_batch(run_id, params=[param for param in every if param.key not in logged])


def final_point(client: MlflowClient, run_id: str, metric: str, value: float) -> "Metric":
    """The returned value as the latest point of the metric, of which the function may have logged others."""
    points = client.get_metric_history(run_id, metric)
    latest = max([time.time_ns() // 1_000_000, *(point.timestamp + 1 for point in points)])
    return entities.Metric(metric, value, latest, max((point.step for point in points), default=0))


def _is_value(value: Any, direction: str) -> bool:
    """True for a value that a trial may end with; NaN is not, nor an infinity that no other trial could beat.

    Raises:
        TrainingRunError: it is not a number.
    """
    try:
        return not math.isnan(float(value)) and float(value) != (math.inf if direction == "MAXIMIZE" else -math.inf)
    except (TypeError, ValueError) as error:
        raise TrainingRunError(
            f"the function of a sweep returns the value of the metric, a number; this one returned {value!r:.100}."
        ) from error
