"""Promotion: an alias moves to the candidate when it beats the version that holds it."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.gates import require_gates
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.metadata import link, table
from dagster_mlops.core.model_versions import DONE, INTENDED, holder, made_by, moves, refuse_alias, write_move
from dagster_mlops.core.options import asset_with
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.promotion.error_budget import ErrorBudget, Look, next_look
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import HoldsModels, ModelRegistry, TakesTurns

if TYPE_CHECKING:
    from dagster_mlops.evaluation.promotion_evidence import SameRows

# How often a promotion looks again when another one moves the alias at the same time.
_TRIES = 5


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
    Both versions keep the move, its reason and its evidence in their note ``dagster_mlops.promoted``; in MLflow, a tag.

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
            rule, look = Rule(metric, greater_is_better, min_improvement), None
            if compared and error_rate is not None:
                budget = ErrorBudget(error_rate, looks)
                look = next_look(context, budget, models.tool, compared.evaluation.rows_hash, version.version)
            move = promote_version(models, version, alias, rule, evidence, context.run.run_id, compared, look)
            record = holder(models, registered_model_name, alias)
            if record is None:
                raise ModelVersionError(
                    f"{registered_model_name!r} has no {alias!r}: {move.why}. Train a version with a finite {metric!r}."
                )
            tool, url = models.tool, models.url(record)
        context.log.info(f"{alias} of {registered_model_name} is version {record.version}: {move.why}")
        return dg.MaterializeResult(
            metadata=record.to_metadata(
                {
                    f"{tool}/promoted": move.promoted,
                    f"{tool}/champion_version": int(record.version) if record.version.isdigit() else record.version,
                    **table(f"{tool}/decision", _decision(move, metric)),
                    **(look.to_metadata(tool) if look else {}),
                    **{f"{tool}/{role}_{metric}": value for role, value in move.values().items()},
                    f"{tool}/gates": evidence,
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


@lazy_dataclass(frozen=True)
class Rule:
    """The condition on which a candidate is better."""

    metric: str
    greater_is_better: bool = True
    min_improvement: float = 0.0

    def judge(self, candidate: float, champion: float | None) -> tuple[bool, str]:
        """True if the candidate wins, and the reason.

        >>> Rule("auc", min_improvement=0.01).judge(0.745, 0.74)
        (False, 'auc 0.745 against 0.74: improvement 0.005 is less than 0.01')
        >>> Rule("rmse", greater_is_better=False).judge(1.5, 2.0)
        (True, 'rmse 1.5 against 2: improvement 0.5')
        """
        if not math.isfinite(candidate):
            return False, f"the candidate's {self.metric} is {candidate}"
        if champion is None:
            return True, f"{self.metric} {candidate:.6g}: the first to hold the alias"
        if not math.isfinite(champion):
            return True, f"{self.metric} {candidate:.6g} against {champion}"
        improvement = (candidate - champion) * (1 if self.greater_is_better else -1)
        compared = f"{self.metric} {candidate:.6g} against {champion:.6g}"
        if improvement <= 0:
            return False, f"{compared}: no improvement"
        # A billionth of slack: 0.745 - 0.74 is a little less than 0.005 in binary.
        if improvement < self.min_improvement * (1 - 1e-9):
            return False, f"{compared}: improvement {improvement:.6g} is less than {self.min_improvement:.6g}"
        return True, f"{compared}: improvement {improvement:.6g}"


@lazy_dataclass(frozen=True)
class Move:
    """A decision about an alias, with the values that it rests on."""

    promoted: bool
    why: str
    candidate: str
    candidate_value: float
    champion: str = ""  # the version that held the alias before
    champion_value: float | None = None

    def values(self) -> dict[str, float]:
        """The finite metric values, by role."""
        values = {"candidate": self.candidate_value, "champion_before": self.champion_value}
        return {role: value for role, value in values.items() if value is not None and math.isfinite(value)}


def promote_version(
    registry: HoldsModels,
    candidate: ModelVersion,
    alias: str,
    rule: Rule,
    evidence: Mapping[str, bool],
    dagster_run_id: str,
    compared: "SameRows | None" = None,
    look: Look | None = None,
) -> Move:
    """Move the alias to `candidate` if it wins: intent, move, verification, record; each step can be repeated.

    Raises:
        ModelVersionError: a version or metric is missing, or other promotions kept moving the alias.
        EvaluationError: `compared` is not about the two versions, or lacks the metric.
    """
    with registry.turn(candidate.name) if isinstance(registry, TakesTurns) else nullcontext():
        name, version = candidate.name, candidate.version
        value = compared.candidate() if compared else _metric(registry, candidate, rule.metric)
        for _ in range(_TRIES):
            champion = holder(registry, name, alias)
            before = champion.version if champion else ""
            if before == version:
                return _complete(registry, candidate, alias, value)
            champion_value = None
            if champion:
                champion_value = compared.holder(before) if compared else _metric(registry, champion, rule.metric)
            wins, why = rule.judge(value, champion_value)
            if wins and champion and compared and look:
                wins, confirmed = look.judge(compared.difference.p_value, compared.difference.test)
                why = f"{why}; {confirmed}"
            decision = Move(wins, why, version, value, before, champion_value)
            if not wins:
                return decision
            event = {
                "alias": alias,
                "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "from": before,
                "to": version,
                "why": why,
                "metric": rule.metric,
                "values": decision.values(),
                "gates": dict(evidence),
                **({"evaluation": compared.to_dict()} if compared else {}),
                **({"error_budget": look.to_dict()} if look else {}),
                "dagster_run_id": dagster_run_id,
                "state": INTENDED,
            }
            write_move(registry, candidate, event)
            if registry.move(name, alias, version, expected=before):
                _record(registry, name, event)
                return decision
        raise ModelVersionError(
            f"alias {alias!r} of {name!r} kept moving while version {version} was being promoted. Run one promotion "
            "at a time (give the asset a pool with limit 1), then re-run this one."
        )


def _metric(registry: HoldsModels, version: ModelVersion, metric: str) -> float:
    metrics = registry.metrics(version)
    if metric not in metrics:
        raise ModelVersionError(
            f"version {version.version} of {version.name!r} has no metric {metric!r}; run {version.run_id} has "
            f"{', '.join(sorted(metrics)) or 'none'}. Log it in the training function, or promote on one that is there."
        )
    return float(metrics[metric])


def _complete(registry: HoldsModels, champion: ModelVersion, alias: str, value: float) -> Move:
    """The outcome for a version that holds the alias already, perhaps by a promotion killed before its last record."""
    version = champion.version
    intended = [move for move in moves(registry, champion) if move["state"] == INTENDED and move["alias"] == alias]
    if not intended:
        return Move(False, "it holds the alias already", version, value, version, value)
    event = intended[-1]
    _record(registry, champion.name, event)
    return Move(True, event["why"], version, value, event["from"], event["values"].get("champion_before"))


def _record(registry: HoldsModels, name: str, event: Mapping[str, Any]) -> None:
    finished = {**event, "state": DONE}
    for version in (event["from"], event["to"]):
        if version:
            write_move(registry, registry.version(name, version), finished)


def _decision(move: Move, metric: str) -> list[dict[str, str]]:
    before = "" if move.champion_value is None else f"{move.champion_value:.6g}"
    return [
        {"role": "candidate", "version": move.candidate, metric: f"{move.candidate_value:.6g}", "verdict": move.why},
        {"role": "champion before", "version": move.champion or "none", metric: before, "verdict": ""},
    ]
