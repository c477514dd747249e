"""Promotion: an alias moves to the candidate when it beats the version that holds it."""

from functools import partial
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.gates import require_gates
from dagster_mlops.core.metadata import link, table
from dagster_mlops.core.model_versions import holder, made_by, refuse_alias
from dagster_mlops.core.options import asset_with
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.promotion.error_budget import ErrorBudget, next_look
from dagster_mlops.promotion.gate import Gate, Rule
from dagster_mlops.promotion.history.event_log import mirror
from dagster_mlops.promotion.moves import author_of, promote_version
from dagster_mlops.tools import ModelRegistry


def promotion_asset(
    *,
    candidate: AssetLike,
    registered_model_name: str,
    metric: str,
    greater_is_better: bool = True,
    min_improvement: float = 0.0,
    alias: str = "champion",
    name: str = "champion",
    evaluation: AssetLike | None = None,
    error_rate: float | None = 0.05,
    looks: int = 52,
    registry: str = "mlflow",
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset that moves `alias` to the version that the asset `candidate` made, if it beats the current holder.

        champion = promotion_asset(
            candidate=dg.AssetKey("arrival_delay_model"), registered_model_name="arrival_delay", metric="auc",
            min_improvement=0.002,
        )

    Better means: `metric` of the version's run improves, by `min_improvement` or more. A tie, and a metric that is not
    finite, never win. With `evaluation`, an :func:`evaluation_asset`, the metric is that of both versions on its rows,
    and the difference must not be chance: of `looks` candidates that are no better, such as those of a year of weeks,
    one is promoted with a probability of `error_rate` at most, so that each is asked for a p-value of
    ``error_rate / looks``. ``error_rate=None`` takes every improvement. Nothing moves unless every blocking check of
    `candidate` and `evaluation` holds for its latest materialization.
    Each move, its reason and its evidence are an entry of the model's history, which the registry and Dagster's event
    log both keep; `dagster-mlops history` shows it.

    The asset is the version that holds the alias: its record, and ``<name>/<version>`` as data version, so that what
    depends on it stays fresh when the candidate lost. Running it again, also after a kill, gives the same state.

    `registry` is the key of the resource that holds the models. Everything else that :func:`dagster.asset` takes is
    passed on.
    """
    refuse_alias(alias, registry, "alias")
    _refuse_budget(error_rate, looks)
    guards = [asset_key(asset) for asset in (candidate, evaluation) if asset is not None]

    def promote(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        from dagster_mlops.evaluation.promotion_evidence import same_rows  # for steps, not for code locations

        resource = capable_resource(context, registry, ModelRegistry)
        challenger = made_by(context, guards[0], registered_model_name)
        compared = (
            same_rows(context, guards[1], challenger, alias, metric, greater=greater_is_better) if evaluation else None
        )
        # Where several partitions, first...last, made a version at once, any of them has its checks.
        partitions = {guards[0]: challenger.dagster_partition.rpartition("...")[2]}
        if compared:
            partitions[guards[1]] = compared.partition
        evidence = require_gates(context, guards, partitions)
        with resource.models() as models:
            version = models.version(registered_model_name, challenger.version)
            look = None
            if compared and error_rate is not None:
                budget = ErrorBudget(error_rate, looks)
                look = next_look(context, budget, models.tool, compared.evaluation.rows_hash, version.version)
            gate = Gate(Rule(metric, greater_is_better, min_improvement), evidence, compared, look)
            judge = partial(gate.judge, models, version)
            move = promote_version(models, version, alias, judge, author_of(context))
            verdict = move.verdict
            record = holder(models, registered_model_name, alias)
            if record is None:
                raise ModelVersionError(
                    f"{registered_model_name!r} has no {alias!r}: {verdict.why}. Train a version with a finite "
                    f"{metric!r}."
                )
            tool, url = models.tool, models.url(record)
        context.log.info(f"{alias} of {registered_model_name} is version {record.version}: {verdict.why}")
        return dg.MaterializeResult(
            metadata=record.to_metadata(
                {
                    f"{tool}/promoted": move.promoted,
                    f"{tool}/champion_version": int(record.version) if record.version.isdigit() else record.version,
                    **table(f"{tool}/decision", verdict.rows),
                    **(look.to_metadata(tool) if look else {}),
                    **{f"{tool}/{role}_{metric}": value for role, value in verdict.values.items()},
                    f"{tool}/gates": evidence,
                    **mirror(context, tool, move.history),
                    **link(f"{tool}/version_url", url),
                }
            ),
            data_version=dg.DataVersion(f"{record.name}/{record.version}"),
        )

    return asset_with(
        asset_options,
        name=name,
        description=f"Alias `{alias}` of `{registered_model_name}`, won by {metric}.",
        kinds=[registry],
        required_resource_keys=[registry],
        deps=guards,
    )(promote)


def _refuse_budget(error_rate: float | None, looks: int) -> None:
    if error_rate is not None and not (0 < error_rate < 1 and looks >= 1):
        raise dg.DagsterInvalidDefinitionError(
            f"error_rate={error_rate!r} with looks={looks!r}: the rate is between 0 and 1, such as 0.05, and at least "
            "one candidate shares it. error_rate=None takes every improvement."
        )
