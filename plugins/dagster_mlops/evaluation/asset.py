"""The evaluation asset: the latest version of a training, measured on rows that it was not trained on."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
from dagster_mlops.core.failures import not_retried
from dagster_mlops.core.metadata import link
from dagster_mlops.core.model_versions import made_by, refuse_alias, registry_kind
from dagster_mlops.core.options import asset_with
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.errors import EvaluationError, ModelVersionError
from dagster_mlops.tools import ModelRegistry

if TYPE_CHECKING:
    from dagster_mlops.evaluation.measure import SliceBy
    from dagster_mlops.evaluation.metrics import Metric, Task
    from dagster_mlops.evaluation.predictions import Features


def evaluation_asset(
    *,
    name: str,
    model: AssetLike,
    rows: AssetLike | dg.AssetIn,
    label: str,
    task: "Task | None" = None,
    positive: Any = None,
    classes: Sequence[Any] | None = None,
    features: "Features" = None,
    slices: "Sequence[SliceBy]" = (),
    group: str | Callable[..., Any] | None = None,
    baselines: Mapping[str, Callable[..., Any]] | None = None,
    training_rows: AssetLike | dg.AssetIn | None = None,
    compare_with: str | None = "champion",
    metrics: "Mapping[str, Metric] | None" = None,
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
    """An asset that measures the latest version of the asset `model`, and writes its model card.

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
        name: Name of the asset.
        model: The training asset. Its latest version is measured.
        rows: An upstream asset that loads as a dataframe, by any IO manager. The model must not be trained on them.
        label: Column of the labels; rows without one are left out and counted. The model never sees it.
        task: Follows from the labels by default: two values, a few, or numbers.
        positive: The label of a binary task that counts as yes; 1, True or the last in order by default.
        classes: All possible labels, if the rows hold only some of them.
        features: Function that makes a model's inputs from the rows (without the label), or their names; the
            signature by default.
        slices: Columns, whose values are slices, and ``{name: condition}`` with a function of the rows, or a query.
        group: Column, or function of the rows, whose equal values are rows that hang together, such as the day or the
            customer: they are drawn and tested together. Rows of one day share its weather, so that a model may be
            lucky on all of them at once.
        baselines: Functions of the rows (and of `training_rows`, if given) that answer as a model does. The best
            answer that is the same for all rows is always one.
        training_rows: An upstream asset with the rows and labels that these functions learn from.
        compare_with: Alias of the rival; None for no comparison. A version that holds the alias itself is compared
            with the one that held it before.
        metrics: Functions of labels and predictions that return a number, or a value per row to average, by name.
        lower_is_better: Those of these metrics for which less is better.
        threshold: Probability from which a row of a binary task counts as yes.
        min_rows: Rows that a slice needs; one with fewer is listed without metrics.
        resamples: Resamples of the bootstrap; 1,000 of 50,000 rows take about a second for each model.
        confidence: Confidence level of the intervals.
        seed: Seed of resamples and shuffling.
        importance_rows: Rows on which permutation importance is measured; 0 leaves it out.
        card: Sections of the model card that only you can write, by title.
        registry: Key of the resource that holds the models.
        asset_options: Further options of :func:`dagster.asset`.
    """
    if compare_with:
        refuse_alias(compare_with, registry, "compare_with")
    model_key, rows_key = asset_key(model), asset_key(rows)
    ins = {"rows": rows, **({"training_rows": training_rows} if training_rows else {})}

    @not_retried(EvaluationError, ModelVersionError)
    def evaluation(context: dg.AssetExecutionContext, **frames: Any) -> dg.MaterializeResult:
        # For steps, not for code locations.
        from dagster_mlops.core.markdown import metadata
        from dagster_mlops.evaluation.evaluate import Setup, evaluate
        from dagster_mlops.evaluation.measure import Plan
        from dagster_mlops.evaluation.model_card import EVALUATION, KeepsEvaluations, Training, model_card, summary
        from dagster_mlops.evaluation.ui_metadata import RESULT, metadata_of

        plan = Plan(resamples, confidence, seed, min_rows, threshold, dict(metrics or {}), frozenset(lower_is_better))
        setup = Setup(
            model=model_key,
            rows=rows_key,
            label=label,
            task=task,
            positive=positive,
            classes=classes,
            features=features,
            slices=tuple(slices),
            baselines=dict(baselines or {}),
            alias=compare_with or "",
            plan=plan,
            importance_rows=importance_rows,
            card=dict(card or {}),
            group=group or "",
        )
        run_id, run_url, training = "", "", Training()
        with capable_resource(context, registry, ModelRegistry).models() as models:
            record = made_by(context, model_key)
            version = models.version(record.name, record.version)
            result, model_format, pictures = evaluate(context, models, record, setup, **frames)
            keeps_evaluations = isinstance(models, KeepsEvaluations)
            if keeps_evaluations:
                training = models.training(version)
            card_text = model_card(record, training, result, setup.card)
            if keeps_evaluations:
                pngs = {name: picture.content for name, picture in pictures.items() if picture.content}
                run_id, run_url = models.keep_evaluation(context, version, result, pngs, str(card_text))
            models.note(version, EVALUATION, summary(result, run_id))
            tool, version_url = models.tool, models.url(version)
        prefix = f"{tool}/evaluation"
        return dg.MaterializeResult(
            metadata={
                **metadata_of(result, pictures.values(), prefix),
                **({f"{prefix}/run_id": run_id} if run_id else {}),
                f"{prefix}/format": str(model_format),
                f"{tool}/model_card": metadata(card_text),
                **link(f"{prefix}/run_url", run_url),
                **link(f"{tool}/version_url", version_url),
                f"{tool}/{RESULT}": dg.MetadataValue.json(result.to_dict()),
            },
            data_version=dg.DataVersion(result.digest),
        )

    return asset_with(
        asset_options,
        name=name,
        description=f"The latest version of {model_key.to_user_string()} on {rows_key.to_user_string()}.",
        kinds=[registry_kind(registry)],
        required_resource_keys=[registry],
        deps=[model_key],
        ins={argument: asset_input(frame) for argument, frame in ins.items()},
    )(evaluation)
