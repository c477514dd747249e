"""A sweep on its asset's page: progress, importance of the parameters, and a table of the best trials."""

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.metadata import link, table
from dagster_mlops.core.pictures import drawn, failed, markdown, new_figure
from dagster_mlops.mlflow.lazy import mlflow, optuna
from dagster_mlops.mlflow.metadata_keys import BEST_VALUE, STORAGE, STUDY_NAME
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.mlflow.sweep.study import RUN_ID, Search, Settled
from dagster_mlops.provenance import mask_credentials

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROWS = 20
_PANELS = 6


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
        "optuna/best_params": dg.MetadataValue.json({name: _plain(value) for name, value in best.params.items()}),
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
    problems = markdown(picture for picture in pictures if picture.problem)
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
    figure = new_figure(9, 3.2, tool="mlflow")
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
    history.legend(fontsize="small")
    importance = list(importances(study).items())[:10][::-1]
    shares.barh([name for name, _ in importance], [share for _, share in importance])
    shares.set(title="Importance of parameters" if importance else "Importance: too few different values", xlim=(0, 1))
    return figure


def _slices(study: "optuna.Study", metric: str) -> "Figure | None":
    """The value over each parameter, the most important ones first."""
    complete = [t for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE" and t.value is not None]
    names = list(dict.fromkeys([*importances(study), *(name for trial in complete for name in trial.params)]))[:_PANELS]
    if not names:
        return None
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = new_figure(3.2 * columns, 2.6 * rows, tool="mlflow")
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, name in zip(panels, names, strict=False):
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
        if getattr(trials[0].distributions[name], "log", False):
            panel.set_xscale("log")
        panel.set(xlabel=name, ylabel=metric)
        if panel is panels[0]:
            figure.colorbar(points, ax=panels, label="trial", shrink=0.8)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    return figure


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)
