"""Sweeps with a step for each trial: a partition, in its own process or pod, limited by a pool."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import asset_deps
from dagster_mlops.core.asset_records import NO_DATA, latest_event, upstream_refs
from dagster_mlops.core.failures import not_retried
from dagster_mlops.core.metadata import link
from dagster_mlops.core.model_versions import refuse_model
from dagster_mlops.core.options import known_options
from dagster_mlops.core.resources import note_credentials
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow import upstream
from dagster_mlops.mlflow.assets import training_asset
from dagster_mlops.mlflow.lazy import optuna
from dagster_mlops.mlflow.metadata_keys import METRIC, RUN_URL, SECONDS, STORAGE, STUDY_NAME, TRIAL_NUMBER
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.runs.signals import delivered_outside_of_databases
from dagster_mlops.mlflow.sweep import study as studies
from dagster_mlops.mlflow.sweep.asset import SweepFunction, refuse_checks, refuse_metric
from dagster_mlops.mlflow.sweep.best import conclude, repeat_trial, tried_before
from dagster_mlops.mlflow.sweep.trial import STUDY, close_left, run_trial
from dagster_mlops.provenance import mask_credentials


@dataclass(frozen=True)
class PartitionedSweep:
    """The definitions of :func:`sweep_trials`: ``dg.Definitions(assets=[*sweep.assets], sensors=[sweep.sensor])``."""

    study: dg.AssetsDefinition
    trials: dg.AssetsDefinition
    best: dg.AssetsDefinition
    sensor: dg.SensorDefinition

    @property
    def assets(self) -> list[dg.AssetsDefinition]:
        """The three assets: study, trials, and the best trial's model."""
        return [self.study, self.trials, self.best]


_READ = "dagster_mlops.read"  # attribute of a trial: the refs that its step has read
_RUN = "mlflow_sweep_run_id"  # attribute of the study: the parent of its trials' MLflow runs


def sweep_trials(
    *,
    name: str,
    registered_model_name: str,
    metric: str,
    direction: studies.Direction,
    n_trials: int,
    sampler: studies.MakeSampler = None,
    pruner: studies.MakePruner = None,
    storage: str | dg.EnvVar | None = None,
    experiment: str | None = None,
    seed: int = 0,
    pool: str | None = None,
    run_tags: dict[str, str] | None = None,
    minimum_interval_seconds: int = 30,
    **asset_options: Any,
) -> Callable[[Callable[..., float]], PartitionedSweep]:
    """Make assets, with a step for each trial, of a function that trains with the parameters of an Optuna trial.

        @sweep_trials(
            name="arrival_delay_model", registered_model_name="arrival_delay", metric="auc", direction="maximize",
            n_trials=40, storage=dg.EnvVar("OPTUNA_STORAGE"), pool="gpu", op_tags={...},   # a GPU profile, say
        )
        def sweep(trial: optuna.Trial, training_set: pd.DataFrame) -> float: ...

        defs = dg.Definitions(assets=[training_set, *sweep.assets], sensors=[sweep.sensor], resources={"mlflow": ...})

    The definitions are:

    * ``<name>_study``: materializing it starts a sweep. It makes the study and a partition for each trial.
    * ``<name>_trials``: an asset with a partition for each trial, in the given `pool`. Its options are the
      `asset_options` of :func:`dagster.asset`: retry policy, op tags, and so on.
    * `name`: a :func:`training_asset`, whose version has the best trial's model. `io_manager_key` is this asset's.
    * ``<name>_sweep``: the sensor that requests the runs of the trials, and that of `name` after the last one.

    The function is that of :func:`sweep_asset`. A trial's parameters are chosen when its step starts, from the results
    of the trials before. The step of a trial that was killed can be run again, and continues with the same parameters;
    one whose trial has ended does not repeat it. `run_tags` are tags of the trials' runs, such as
    ``{"dagster/max_retries": "3"}``. `storage` is a database that all steps can reach.
    """
    refuse_checks(asset_options)
    refuse_metric(metric)
    refuse_model(registered_model_name, "mlflow")
    note_credentials("sweep_trials", "storage", storage)
    path = dg.AssetKey(name).with_prefix(asset_options.get("key_prefix", ())).path
    unique = "_".join(path)
    partitions = dg.DynamicPartitionsDefinition(name=f"{unique}_trials")
    keys = {part: dg.AssetKey([*path[:-1], f"{name}_{part}"]) for part in ("study", "trials")}
    group = asset_options.get("group_name")

    @contextmanager
    def opened(instance: dg.DagsterInstance, study_name: str, offset: int = 0) -> "Iterator[optuna.Study]":
        url = studies.storage_url(storage, instance)
        with studies.opened_study(url, study_name, direction=direction, pruner=pruner) as (study, _):
            study.sampler = studies.sampler_of(sampler, seed + offset)
            yield study

    @dg.asset(key=keys["study"], group_name=group, kinds={"optuna"})
    def begin(context: dg.AssetExecutionContext, mlflow: MlflowResource) -> dg.MaterializeResult:
        """Starts a sweep: makes the study and a partition for each of its trials."""
        # The same name for each attempt, so that a retry makes no second study.
        study_name = f"{unique}-{(context.run.root_run_id or context.run.run_id)[:8]}"
        with opened(context.instance, study_name) as study, mlflow.activate_experiment(experiment) as tracking:
            if _RUN not in study.user_attrs:
                tags = {STUDY_NAME: study_name, runs.DAGSTER_RUN: context.run.run_id}
                run = tracking.client.create_run(tracking.experiment_id, tags=tags, run_name=study_name)
                study.set_user_attr(_RUN, run.info.run_id)
            # It only groups the trials, and no process writes to it.
            tracking.client.set_terminated(study.user_attrs[_RUN])
            while (count := len(study.get_trials(deepcopy=False))) < n_trials:
                study.ask()
            names = [_partition(study_name, number) for number in range(count)]
            context.instance.add_dynamic_partitions(partitions.name or "", names)
        return dg.MaterializeResult(
            metadata={
                STUDY_NAME: study_name,
                "optuna/n_trials": n_trials,
                STORAGE: mask_credentials(studies.storage_url(storage, context.instance)),
            }
        )

    def decorate(function: Callable[..., float]) -> PartitionedSweep:
        sweep_function = SweepFunction(function)

        @functools.wraps(function)
        @not_retried(TrainingRunError)
        def try_one(context: dg.AssetExecutionContext, mlflow: MlflowResource, **inputs: Any) -> dg.MaterializeResult:
            study_name, number = _of_partition(context.partition_key)
            with opened(context.instance, study_name, number) as study, mlflow.activate(experiment) as client:
                context.instance.add_run_tags(context.run.run_id, {runs.TRAINING_TAG: "true"})
                trial = study.get_trials(deepcopy=False)[number]
                if trial.state.is_finished():
                    context.log.info(f"Trial {number} has ended as {trial.state.name} and is not repeated.")
                else:
                    parent = client.get_run(study.user_attrs[_RUN])
                    search = studies.Search(study, metric, context.run.run_id, client, parent)
                    objective = sweep_function.objective(context, mlflow, inputs)
                    is_alive = functools.partial(runs.is_alive, instance=context.instance, unless=context.run.run_id)
                    # The sensor and a backfill may both have requested it.
                    close_left(search, only=number, is_alive=is_alive)
                    live_trial = upstream.trial_of(study, trial)
                    live_trial.set_user_attr(_READ, [str(ref) for ref in upstream_refs(context)])
                    with delivered_outside_of_databases():
                        trial = run_trial(objective, search, live_trial)
                    assert trial is not None
                run = client.get_run(trial.user_attrs[studies.RUN_ID])
            metadata: dict[str, Any] = {
                TRIAL_NUMBER: number,
                "optuna/state": trial.state.name,
                "optuna/params": dg.MetadataValue.json({key: str(value) for key, value in trial.params.items()}),
                **({f"{METRIC}/{metric}": float(trial.value)} if trial.value is not None else {}),
                **({SECONDS: round(trial.duration.total_seconds(), 3)} if trial.duration else {}),
            }
            metadata |= link(RUN_URL, mlflow.run_url(run.info.experiment_id, run.info.run_id))
            if trial.state.name == "FAIL":
                reason = run.data.tags.get(runs.CLOSED, "it was cut off")
                raise dg.Failure(f"Trial {number} has failed: {reason}", metadata=metadata, allow_retries=False)
            return dg.MaterializeResult(metadata=metadata)

        sweep_function.set_signature(try_one)
        options = {
            **known_options(asset_options, dg.asset),
            "kinds": {"mlflow", "optuna", *asset_options.get("kinds", ())},
            "pool": pool,
        }
        options["metadata"] = {**options.get("metadata", {}), NO_DATA: True}
        options.pop("key_prefix", None)
        # Options of the asset that others load a model from.
        io_options = {key: options.pop(key) for key in ("io_manager_key", "io_manager_def") if key in options}
        deps = asset_deps([*options.pop("deps", ()), keys["study"]])
        trials = dg.asset(key=keys["trials"], partitions_def=partitions, deps=deps, **options)(try_one)

        @functools.wraps(function)
        def choose(context: dg.AssetExecutionContext, mlflow: MlflowResource) -> dg.MaterializeResult:
            if tried := tried_before(context):
                objective = sweep_function.objective(context, mlflow, sweep_function.load_inputs(context, trials))
                return dg.MaterializeResult(metadata=repeat_trial(objective, tried, metric=metric))
            study_name = _latest_study(context.instance, keys["study"])
            if not study_name:
                raise TrainingRunError(f"no sweep was started: materialize {name}_study, then the trials.")
            with opened(context.instance, study_name) as study:
                if unfinished := [_partition(study_name, trial.number) for trial in studies.running(study)]:
                    raise dg.Failure(
                        f"{len(unfinished)} trials of {study_name} have not ended: {', '.join(unfinished[:10])}. "
                        f"Materialize these partitions of {name}_trials first."
                    )
                if studies.settled(study).count("COMPLETE"):
                    _refuse_other_inputs(study.best_trial, context, keys["study"])
                search = studies.Search(study, metric)
                search.client.set_tag(search.parent.info.run_id, STUDY, study_name)
                metadata = conclude(search, context, mlflow, studies.storage_url(storage, context.instance))
            return dg.MaterializeResult(metadata=metadata)

        sweep_function.set_signature(choose, inputs=False)
        best = training_asset(
            registered_model_name=registered_model_name,
            experiment=experiment,
            seed=seed,
            key=dg.AssetKey(path),
            group_name=group,
            kinds={"optuna"},
            deps=[keys["trials"], *sorted(trials.asset_deps[keys["trials"]] - {keys["study"]})],
            **io_options,
        )(choose)

        @dg.sensor(
            name=f"{unique}_sweep",
            target=[trials, best],
            minimum_interval_seconds=minimum_interval_seconds,
            default_status=dg.DefaultSensorStatus.RUNNING,
            description=f"Requests the runs of the trials of {name}, and its own after the last one.",
        )
        def go_on(context: dg.SensorEvaluationContext) -> "dg.SensorResult | dg.SkipReason":
            study_name = _latest_study(context.instance, keys["study"])
            last_study, _, stage = (context.cursor or "").rpartition(":")
            if not study_name or (last_study == study_name and stage == "best"):
                return dg.SkipReason(f"Materialize {name}_study to start a sweep.")
            if last_study != study_name:
                requests = [
                    # The run key is the trial's: no run is requested twice.
                    dg.RunRequest(key, partition_key=key, asset_selection=[keys["trials"]], tags=run_tags or {})
                    for key in context.instance.get_dynamic_partitions(partitions.name or "")
                    if _of_partition(key)[0] == study_name
                ]
                return dg.SensorResult(requests, cursor=f"{study_name}:trials")
            with opened(context.instance, study_name) as study:
                ended = len(studies.settled(study).trials)
            if ended < n_trials:
                return dg.SkipReason(f"{study_name}: {ended} of {n_trials} trials have ended.")
            request = dg.RunRequest(f"{study_name}/best", asset_selection=[dg.AssetKey(path)])
            return dg.SensorResult([request], cursor=f"{study_name}:best")

        return PartitionedSweep(begin, trials, best, go_on)

    return decorate


def _refuse_other_inputs(
    best: "optuna.trial.FrozenTrial", context: dg.AssetExecutionContext, study: dg.AssetKey
) -> None:
    """Refuse a best trial that has read other versions than the current ones, which its model's record would name.

    Raises:
        TrainingRunError: it has.
    """
    current, recorded = {str(ref) for ref in upstream_refs(context)}, best.user_attrs.get(_READ)
    if recorded is not None and current != set(recorded):
        raise TrainingRunError(
            f"inputs of the trials were materialized again since trial {best.number}, the best: "
            f"{', '.join(sorted(current ^ set(recorded))[:6])}. Materialize {study.to_user_string()} to start a sweep "
            "on the current inputs."
        )


def _partition(study_name: str, number: int) -> str:
    """The partition of a trial.

    >>> _of_partition(_partition("model-0a1b2c3d", 7))
    ('model-0a1b2c3d', 7)
    """
    return f"{study_name}.{number:04d}"


def _of_partition(key: str) -> tuple[str, int]:
    study_name, _, number = key.rpartition(".")
    return study_name, int(number)


def _latest_study(instance: dg.DagsterInstance, key: dg.AssetKey) -> str:
    """The name of the latest study; empty when there is none."""
    event = latest_event(instance, key)
    materialization = event.asset_materialization if event else None
    return str(materialization.metadata[STUDY_NAME].value) if materialization else ""
