"""The evaluation asset: the version that a training made last, measured on rows it has not seen."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
from dagster_mlops.core.extras import extra
from dagster_mlops.core.options import merged_options
from dagster_mlops.errors import EvaluationError, ModelVersionError
from dagster_mlops.mlflow.evaluation.evaluate import Setup, evaluate
from dagster_mlops.mlflow.evaluation.measure import Plan, SliceBy
from dagster_mlops.mlflow.evaluation.metrics import Metric, Task
from dagster_mlops.mlflow.evaluation.predictions import (
    Features,
)
from dagster_mlops.mlflow.evaluation.present import PREFIX, metadata_of
from dagster_mlops.mlflow.evaluation.store import EVALUATION, log_evaluation, summary
from dagster_mlops.mlflow.model_card import attach_card, model_card
from dagster_mlops.mlflow.registry.aliases import Registry
from dagster_mlops.mlflow.registry.candidate import made_by
from dagster_mlops.mlflow.resource import MlflowResource

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


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
    whole and by slice; the comparison with the version that holds `compare_with` resamples both together. What comes
    out are numbers, tables and figures on the asset, an MLflow run below the training run, a tag on the version, and
    the version's description. The same version and rows again give the same text, and no second run.

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
        asset_options: whatever :func:`dagster.asset` takes. The resource key is ``mlflow``.
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

    def evaluation(context: dg.AssetExecutionContext, mlflow: MlflowResource, **frames: Any) -> dg.MaterializeResult:
        try:
            with mlflow.activate() as client:
                record = made_by(context, setup.model)
                version = Registry(client, record.name, setup.alias).version(record.version)
                found, stored_as, pngs = evaluate(context, client, mlflow, record, setup, **frames)
                training = _training_run(client, record.run_id)
                run = log_evaluation(client, context, mlflow, found, version, training, pngs)
                text = model_card(client, mlflow, record, version, training, found, setup.card)
                attach_card(client, version, text, (training or run).info.run_id)
                client.set_model_version_tag(record.name, record.version, EVALUATION, summary(found, run.info.run_id))
        except (EvaluationError, ModelVersionError) as error:
            # Asking once more would find the same.
            raise dg.Failure(str(error), allow_retries=False) from error
        urls = {
            f"{PREFIX}/run_url": mlflow.run_url(run.info.experiment_id, run.info.run_id),
            "mlflow/version_url": mlflow.version_url(record.name, record.version),
        }
        return dg.MaterializeResult(
            metadata={
                **metadata_of(found, pngs),
                f"{PREFIX}/run_id": run.info.run_id,
                f"{PREFIX}/format": str(stored_as),
                "mlflow/model_card": dg.MetadataValue.md(text),
                **{key: dg.MetadataValue.url(url) for key, url in urls.items() if url},
            },
            data_version=dg.DataVersion(run.data.tags[EVALUATION]),
        )

    options = merged_options(
        asset_options,
        name=name,
        description=f"The latest version of {setup.model.to_user_string()} on {setup.rows.to_user_string()}.",
        kinds=["mlflow"],
        deps=[setup.model],
        ins={argument: asset_input(frame) for argument, frame in ins.items()},
    )
    return dg.asset(**options)(evaluation)


def _training_run(client: "MlflowClient", run_id: str) -> "Run | None":
    try:
        return client.get_run(run_id)
    except extra("mlflow.exceptions").MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
