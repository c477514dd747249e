"""An asset of predictions: the promoted model version scores a dataframe asset, partition by partition."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
from dagster_mlops.core.asset_records import dagster_facts, latest, refs_read, upstream_reads
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.failures import not_retried
from dagster_mlops.core.gates import require_gates
from dagster_mlops.core.metadata import ROW_COUNT
from dagster_mlops.core.options import asset_with
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.errors import ModelVersionError, PredictionError
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.serving.partitions import scored_partition
from dagster_mlops.tools import ModelRegistry

if TYPE_CHECKING:
    from dagster_mlops.serving.runtime import LogRules


def batch_predictions_asset(
    *,
    name: str = "predictions",
    promoted: AssetLike,
    rows: AssetLike | dg.AssetIn,
    key: str | Sequence[str] = (),
    columns: Sequence[str] = (),
    prediction_log: str | Path | None = None,
    log_rules: "LogRules | None" = None,
    chunk_rows: int = 20_000,
    registry: str = "mlflow",
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset with the predictions of the model version that the asset `promoted` recorded, for each of the `rows`.

        predictions = batch_predictions_asset(
            promoted="champion", rows="flights_of_the_day", key="flight_id", columns=["flight_id"],
            prediction_log="state/serving/predictions", partitions_def=DAYS,
        )

    It is a dataframe with ``request_id``, `columns`, ``prediction``, ``model_name`` and ``model_version``, in the order
    of the rows, stored by the asset's IO manager. The rows are checked as the requests of a deployment are, so that
    nothing is wrapped, rounded or guessed, and predictions have the form that the generic service answers with.

    The same rows and version again give the same dataframe, and add nothing to the log. Another version is another
    batch: the log has both, and each row says which version it is of.

    Args:
        promoted: An asset whose latest materialization holds the record of a model version, such as a promotion.
        rows: An asset that its IO manager loads as a dataframe; columns the model does not take are left out.
        key: Columns whose values name a row of a partition. The request id is ``<asset>/<partition>/<key>``; without
            `key`, a hash of the row's features takes its place.
        columns: Columns of the rows that the predictions have, too.
        prediction_log: Folder of a prediction log to which the predictions are appended, such as that of a deployment.
        log_rules: As of :func:`deployment_asset`.
        chunk_rows: Rows of one call of the model, and of one write to the log.
        registry: Key of the resource that holds the models.
        asset_options: Anything else that :func:`dagster.asset` takes, such as ``partitions_def``.
    """
    promoted_key, rows_key = asset_key(promoted), asset_key(rows)
    names = [key] if isinstance(key, str) else list(key)
    faults = {f"chunk_rows={chunk_rows!r} is not a whole number from 1 on": chunk_rows < 1}
    refuse_useless(f"batch_predictions_asset {name!r}", {**faults, **(log_rules.faults() if log_rules else {})})

    @not_retried(PredictionError, ModelVersionError)
    def predictions(context: dg.AssetExecutionContext, rows: Any) -> dg.MaterializeResult:
        from dagster_mlops.serving.batch.scoring import Batch, score  # for steps, not for code locations

        evidence = require_gates(context, [promoted_key, rows_key])
        hint = "Materialize it first, or point promoted= at the asset that promotes."
        version = latest(context, promoted_key, ModelVersion, error=ModelVersionError, hint=hint)
        reads = upstream_reads(context)
        with capable_resource(context, registry, ModelRegistry).models() as models:
            batch = Batch.of(
                rows,
                facts=dagster_facts(context),
                partition=scored_partition(context),
                version=version,
                upstream=tuple(dict.fromkeys((version.ref, *refs_read(reads)))),
                datasets=next(
                    (read.records for read in reads if read.asset == rows_key.to_user_string() and read.loaded), ()
                ),
                key=names,
                columns=list(columns),
                log_dir=str(Path(prediction_log).expanduser().resolve()) if prediction_log else "",
                log_rules=log_rules,
            )
            result = score(context, models, batch, chunk_rows)
        metadata = {ROW_COUNT: len(result.frame), **result.metadata}
        if evidence:
            metadata["gates"] = evidence
        return dg.MaterializeResult(
            value=result.frame,
            data_version=dg.DataVersion(batch.record.digest),
            metadata=batch.record.to_metadata(metadata),
        )

    return asset_with(
        asset_options,
        name=name,
        description=f"Predictions of the version that {promoted_key.to_user_string()} recorded, for "
        f"{rows_key.to_user_string()}.",
        dagster_type=dg.Any,  # its IO manager decides what can be stored
        required_resource_keys=[registry],
        deps=[promoted_key],
        ins={"rows": asset_input(rows)},
    )(predictions)
