"""The end of a sweep: the best trial's model becomes the asset's, and the asset's page shows the search."""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops.core.metadata import link, plain_value, table
from dagster_mlops.core.pictures import Axes, Figure, drawn, failed, gallery, label, new_figure, set_margins
from dagster_mlops.core.run_files import CODE, REPRODUCES_TAG, TRIAL, TRIAL_TAG
from dagster_mlops.errors import TrainingRunError
from dagster_mlops.mlflow.lazy import entities, mlflow, optuna
from dagster_mlops.mlflow.metadata_keys import BEST_VALUE, METRIC, STORAGE, STUDY_NAME, TRIAL_NUMBER
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.sweep.study import RUN_ID, Objective, Search, Settled, active_run, settled
from dagster_mlops.mlflow.sweep.trial import INTERMEDIATE, final_point, log_params
from dagster_mlops.provenance import mask_credentials

_ROWS = 20
_PANELS = 6
_TICKS = 4  # on an axis: matplotlib spends most of a small picture on them
_LABEL = 16  # characters of a parameter beside its bar


def conclude(
    search: Search, context: dg.AssetExecutionContext, resource: MlflowResource, storage: str
) -> dict[str, Any]:
    """Give MLflow's active run the best trial's results and plots of the search, and return the metadata.

    Raises:
        TrainingRunError: no trial completed, or the best one's run or model is gone.
    """
    study, metric = search.study, search.metric
    outcome = settled(study)
    if not outcome.count("COMPLETE"):
        raise TrainingRunError(
            f"none of {len(outcome.trials)} trials completed, {outcome.count('PRUNED')} were pruned. The MLflow runs "
            f"of the study {study.study_name} say why."
        )
    best = study.best_trial
    _adopt(search, best)
    tried = json.dumps({"number": best.number, "params": best.params}, default=str)
    search.client.log_text(search.parent.info.run_id, tried, f"{CODE}/{TRIAL}")
    plots = log_plots(search)
    context.log.info(f"Trial {best.number} is the best: {metric} {best.value:.6g} with {best.params}.")
    return sweep_metadata(search, outcome, resource, storage) | plots


def tried_before(context: dg.AssetExecutionContext) -> str:
    """The trial that this Dagster run must rerun instead of a search; empty when it must search.

    Raises:
        TrainingRunError: the run is a rerun, and the best trial is no longer on record.
    """
    tried = context.run.tags.get(TRIAL_TAG, "")
    if not tried and (run_id := context.run.tags.get(REPRODUCES_TAG)):
        raise TrainingRunError(
            f"run {run_id} was a sweep and no longer has its file {CODE}/{TRIAL} with the best trial. A new search "
            "would write to the sweep's own storage, so it is not started."
        )
    return tried


def repeat_trial(objective: Objective, tried: str, *, metric: str) -> dict[str, Any]:
    """Run one trial of an earlier sweep, JSON with its `number` and `params`, in MLflow's active run itself."""
    fields = json.loads(tried)
    trial: Any = optuna.trial.FixedTrial(fields["params"], number=fields["number"])
    value = objective(trial)
    client, run = mlflow.MlflowClient(), active_run()
    client.log_batch(run.info.run_id, metrics=[final_point(client, run.info.run_id, metric, float(value))])
    log_params(client, run.info.run_id, trial.params)
    return {TRIAL_NUMBER: trial.number, f"{METRIC}/{metric}": float(value)}


def _adopt(search: Search, best: "optuna.trial.FrozenTrial") -> None:
    """Give the sweep's run a copy of the best trial's model, its metrics and its parameters.

    Raises:
        TrainingRunError: the trial's run or model was deleted.
    """
    client, parent = search.client, search.parent
    child = client.get_run(best.user_attrs[RUN_ID])
    models = [model for model in runs.logged_models(client, child) if str(model.status) == "READY"]
    if len(models) != 1:
        raise TrainingRunError(
            f"MLflow run {child.info.run_id} of the best trial {best.number} has {len(models)} models, and one is "
            "expected. Start a new sweep."
        )
    [model] = models
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-model-") as scratch:
        source = mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{model.model_id}", dst_path=scratch)
        copy = client.create_logged_model(
            parent.info.experiment_id,
            name=model.name,
            source_run_id=parent.info.run_id,
            tags={key: value for key, value in model.tags.items() if not key.startswith("mlflow.")},
            params={name: str(value) for name, value in best.params.items()},
            model_type=model.model_type,
        )
        described = mlflow.models.Model.load(source)
        described.run_id, described.model_id, described.model_uuid = parent.info.run_id, copy.model_id, copy.model_id
        described.artifact_path = copy.artifact_location
        described.save(str(Path(source, "MLmodel")))
        client.log_model_artifacts(copy.model_id, source)
        client.finalize_logged_model(copy.model_id, entities.LoggedModelStatus.READY)
    timestamp = child.info.end_time or child.info.start_time
    metrics = {k: v for k, v in child.data.metrics.items() if not k.startswith((INTERMEDIATE, "system/"))}
    client.log_batch(
        parent.info.run_id,
        metrics=[
            entities.Metric(name, value, timestamp, 0) for name, value in {**metrics, search.metric: best.value}.items()
        ],
    )
    # A param of the config may have the same name; the trial's run and the asset's metadata have the trial's value.
    log_params(client, parent.info.run_id, child.data.params)


def sweep_metadata(search: Search, outcome: Settled, resource: MlflowResource, storage: str) -> dict[str, Any]:
    """The results, as metadata of the asset."""
    study, metric, parent = search.study, search.metric, search.parent
    best = study.best_trial
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    ranked = sorted(
        (trial for trial in outcome.trials if trial.value is not None and trial.state.name == "COMPLETE"),
        key=lambda trial: (sign * (trial.value or 0.0), trial.number),
    )
    names = sorted({name for trial in ranked for name in trial.params})
    # A parameter may have the metric's name, such as scikit-learn's `loss`.
    columns = {name: f"parameter {name}" if name in ("trial", "seconds", metric) else name for name in names}
    rows = [
        {
            "trial": trial.number,
            metric: float(trial.value or 0.0),
            "seconds": round(trial.duration.total_seconds(), 3) if trial.duration else 0.0,
            **{column: str(trial.params.get(name, "")) for name, column in columns.items()},
            "mlflow run": trial.user_attrs.get(RUN_ID, ""),
        }
        for trial in ranked[:_ROWS]
    ]
    return {
        BEST_VALUE: float(best.value or 0.0),
        "optuna/best_trial": best.number,
        "optuna/best_params": dg.MetadataValue.json({name: plain_value(value) for name, value in best.params.items()}),
        "optuna/complete": outcome.count("COMPLETE"),
        "optuna/pruned": outcome.count("PRUNED"),
        "optuna/failed": outcome.count("FAIL"),
        "optuna/cut_off": outcome.lost_count,
        **table("optuna/trials", rows),
        STUDY_NAME: study.study_name,
        STORAGE: mask_credentials(storage),
        **link("optuna/run_url", resource.run_url(parent.info.experiment_id, parent.info.run_id)),
    }


def log_plots(search: Search) -> dict[str, Any]:
    """Draw the course of the search and log it to MLflow's active run, from which it reaches the asset's page.

    Returns:
        Metadata on pictures that could not be drawn or logged; a search does not fail for a picture.
    """
    plots = {"sweep_history.png": _history, "sweep_params.png": _slices}
    pictures = [drawn(name, partial(plot, search.study, search.metric), tool="mlflow") for name, plot in plots.items()]
    try:
        with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as folder:
            for picture in pictures:
                if picture.content:
                    Path(folder, picture.title).write_bytes(picture.content)
            mlflow.log_artifacts(folder)
    except Exception as error:  # noqa: BLE001 - see above
        pictures.append(failed("The search", error))
    problems = gallery(picture for picture in pictures if picture.problem)
    return {"optuna/figures": problems} if problems else {}


def importances(study: "optuna.Study") -> dict[str, float]:
    """The share of the value's variance that each parameter explains, the largest first; empty when unknown.

    It is Optuna's PED-ANOVA (Watanabe et al. 2023), which needs no other package.
    """
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len({trial.value for trial in complete}) < 2:
        return {}
    # Optuna warns of parameters that hardly vary, and raises when none varies or the trials have different ones.
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        return optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError):
        return {}
    finally:
        optuna.logging.set_verbosity(verbosity)


def _history(study: "optuna.Study", metric: str) -> "Figure":
    figure = new_figure(9, 3.2, tool="mlflow", layout=None)
    history, shares = figure.subplots(1, 2, width_ratios=(3, 2))
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state.name == "COMPLETE" and trial.value is not None]
    pruned = [trial for trial in trials if trial.state.name == "PRUNED" and trial.value is not None]
    values = [trial.value or 0.0 for trial in complete]
    better = max if study.direction.name == "MAXIMIZE" else min
    history.plot([trial.number for trial in complete], values, "o", ms=4, alpha=0.6, label="trial")
    if pruned:
        history.plot([t.number for t in pruned], [t.value for t in pruned], "x", ms=4, color="grey", label="pruned")
    best = [better(values[: end + 1]) for end in range(len(values))]
    history.step([trial.number for trial in complete], best, where="post", color="tab:red", label="best so far")
    history.set(title="Search", xlabel="trial", ylabel=metric)
    history.xaxis.get_major_locator().set_params(integer=True)
    history.locator_params(nbins=_TICKS)
    history.legend(fontsize="small")
    importance = list(importances(study).items())[:10][::-1]
    shares.barh([label(name, _LABEL) for name, _ in importance], [share for _, share in importance])
    shares.set(
        title="Importance of parameters" if importance else "Importance: too few different values",
        xlim=(0, 1),
        xticks=(0, 0.5, 1),
    )
    set_margins(figure, left=0.8, between=1.7, columns=2)
    return figure


def _slices(study: "optuna.Study", metric: str) -> "Figure | None":
    """The value over each parameter, the most important ones first."""
    complete = [t for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE" and t.value is not None]
    names = list(dict.fromkeys([*importances(study), *(name for trial in complete for name in trial.params)]))[:_PANELS]
    if not names:
        return None
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = new_figure(3.2 * columns, 2.6 * rows, tool="mlflow", layout=None)
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    set_margins(figure, left=0.8, between=0.8, rows=rows, columns=columns)
    for position, (panel, name) in enumerate(zip(panels, names, strict=False)):
        trials = [trial for trial in complete if name in trial.params]
        values = [trial.params[name] for trial in trials]
        text = not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        points = panel.scatter(
            [str(value) for value in values] if text else values,
            [trial.value or 0.0 for trial in trials],
            c=[trial.number for trial in trials],
            s=14,
            cmap="viridis",
        )
        panel.locator_params(axis="y", nbins=_TICKS)
        if getattr(trials[0].distributions[name], "log", False):
            panel.set_xscale("log")
        elif not text:
            panel.locator_params(axis="x", nbins=_TICKS)
        panel.set(xlabel=label(name, 24), ylabel="" if position % columns else metric)
        if position == 0:
            figure.colorbar(points, ax=panels, label="trial", shrink=0.8)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    return figure
