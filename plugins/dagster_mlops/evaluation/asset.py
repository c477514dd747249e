"""The evaluation asset: the version that a training made last, measured on rows it has not seen."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
from dagster_mlops.core.model_versions import made_by
from dagster_mlops.core.options import merged_options
from dagster_mlops.errors import EvaluationError, ModelVersionError
from dagster_mlops.evaluation.evaluate import Setup, evaluate
from dagster_mlops.evaluation.keeping import EVALUATION, KeepsEvaluations, KeptEvaluation, Training, summary
from dagster_mlops.evaluation.measure import Plan, SliceBy
from dagster_mlops.evaluation.metrics import Metric, Task
from dagster_mlops.evaluation.model_card import model_card
from dagster_mlops.evaluation.predictions import Features
from dagster_mlops.evaluation.ui_metadata import metadata_of
from dagster_mlops.tools import ModelRegistry


def evaluation_asset(
    *,
    name: str,
    model: AssetLike,
    rows: AssetLike | dg.AssetIn,
    label: str,
    task: Task | None = None,
    positive: Any = None,
    classes: Sequence[Any] | None = None,
    features: Features = None,
    slices: Sequence[SliceBy] = (),
    baselines: Mapping[str, Callable[..., Any]] | None = None,
    training_rows: AssetLike | dg.AssetIn | None = None,
    compare_with: str | None = "champion",
    metrics: Mapping[str, Metric] | None = None,
    lower_is_better: Collection[str] = (),
    threshold: float = 0.5,
    min_rows: int = 50,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    importance_rows: int = 2000,
    card: Mapping[str, str] | None = None,
    registry: str = "mlflow",
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset that measures the version which the asset `model` made last, and writes its model card.

        evaluation = evaluation_asset(
            name="arrival_delay_evaluation", model=arrival_delay_model, rows=validation_rows, label="late",
            slices=["carrier", "origin", {"night": "departure_minute >= 1200"}],
            baselines={"carrier and hour": rates_of_the_timetable},
            card={"Intended use": "Ranks flights at scheduled departure.", "Limitations": "New York, one year."},
        )

    The version, its rivals and the baselines answer the same rows. Each metric comes with a bootstrap interval, as a
    whole and by slice; the comparison with the version that holds `compare_with` resamples both together. The result
    is numbers, tables, figures and the model card on the asset. In MLflow it is also a run below the training run, a
    tag on the version, and the version's description. The same version and rows again give the same text, and no
    second run.

    Args:
        name: of the asset.
        model: the training asset. Its latest version is measured.
        rows: an upstream asset that loads as a dataframe, by any IO manager. The model has not been trained on them.
        label: column of the answers; rows without one are left out and counted. The model never sees it.
        task: by default it follows from the labels: two values, a few, or numbers.
        positive: binary: the label that counts as yes; 1, True or the last in order by default.
        classes: all labels that there can be, where the rows hold only some of them.
        features: makes a model's inputs of the rows (without the label), or names them; the signature by default.
        slices: columns, whose values are slices, and ``{name: condition}`` with a function of the rows, or a query.
        baselines: functions of the rows (and of the `training_rows`, if given) that answer as a model does. The best
            answer that is the same for all rows is always one.
        training_rows: an upstream asset with the rows and labels that these functions learn from.
        compare_with: the alias; None for no comparison. Of the version that holds it, the one that held it before.
        metrics: of your own: functions of labels and predictions that give a number, or a value per row to average.
        lower_is_better: those of your metrics of which less is better.
        threshold: binary: probability from which a row counts as yes.
        min_rows: a slice with fewer is listed without metrics.
        resamples: of the bootstrap; 1,000 of 50,000 rows take about a second for each model.
        confidence: of the intervals.
        seed: of resamples and shuffling.
        importance_rows: rows that permutation importance is found on; 0 leaves it out.
        card: sections of the model card that only you can write, by title.
        registry: Key of the resource that holds the models.
        asset_options: whatever :func:`dagster.asset` takes.
    """
    setup = Setup(
        model=asset_key(model),
        rows=asset_key(rows),
        label=label,
        task=task,
        positive=positive,
        classes=classes,
        features=features,
        slices=tuple(slices),
        baselines=dict(baselines or {}),
        alias=compare_with or "",
        plan=Plan(resamples, confidence, seed, min_rows, threshold, dict(metrics or {}), frozenset(lower_is_better)),
        importance_rows=importance_rows,
        card=dict(card or {}),
    )
    ins = {"rows": rows, **({"training_rows": training_rows} if training_rows else {})}

    def evaluation(context: dg.AssetExecutionContext, **frames: Any) -> dg.MaterializeResult:
        resource: ModelRegistry = getattr(context.resources, registry)
        kept = KeptEvaluation("")
        try:
            with resource.models() as models:
                record = made_by(context, setup.model)
                version = models.version(record.name, record.version)
                result, stored_as, figures = evaluate(context, models, record, setup, **frames)
                training = models.training(version) if isinstance(models, KeepsEvaluations) else Training()
                text = model_card(record, training, result, setup.card)
                if isinstance(models, KeepsEvaluations):
                    kept = models.keep_evaluation(context, version, result, figures, text)
                models.note(version, EVALUATION, summary(result, kept.run_id))
                tool, version_url = models.tool, models.url(version)
        except (EvaluationError, ModelVersionError) as error:
            # Asking once more would find the same.
            raise dg.Failure(str(error), allow_retries=False) from error
        prefix = f"{tool}/evaluation"
        urls = {f"{prefix}/run_url": kept.url, f"{tool}/version_url": version_url}
        return dg.MaterializeResult(
            metadata={
                **metadata_of(result, figures, prefix),
                **({f"{prefix}/run_id": kept.run_id} if kept.run_id else {}),
                f"{prefix}/format": str(stored_as),
                f"{tool}/model_card": dg.MetadataValue.md(text),
                **{key: dg.MetadataValue.url(url) for key, url in urls.items() if url},
            },
            data_version=dg.DataVersion(result.digest),
        )

    options = merged_options(
        asset_options,
        name=name,
        description=f"The latest version of {setup.model.to_user_string()} on {setup.rows.to_user_string()}.",
        kinds=[registry],
        required_resource_keys=[registry],
        deps=[setup.model],
        ins={argument: asset_input(frame) for argument, frame in ins.items()},
    )
    return dg.asset(**options)(evaluation)
