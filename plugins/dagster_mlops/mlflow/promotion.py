"""Promotion: an alias moves to the candidate when it beats the version that holds it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.gates import require_gates
from dagster_mlops.core.options import merged_options
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.mlflow.evaluation.evidence import SameRows, same_rows
from dagster_mlops.mlflow.registry.aliases import DONE, INTENDED, Registry
from dagster_mlops.mlflow.registry.candidate import made_by
from dagster_mlops.mlflow.registry.versions import version_record
from dagster_mlops.mlflow.resource import MlflowResource
from dagster_mlops.provenance import mask_credentials

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
    min_wins: float = 0.0,
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset that moves `alias` to the version that the asset `candidate` made, when it beats the present holder.

        champion = promotion_asset(
            candidate=dg.AssetKey("arrival_delay_model"), registered_model_name="arrival_delay", metric="auc",
            min_improvement=0.002,
        )

    Better means: `metric` of the version's run improves, by `min_improvement` or more. A tie, and a metric that is not
    finite, never win. With `evaluation`, an :func:`evaluation_asset`, the metric is that of both versions on its rows,
    and the candidate has to win in a share of `min_wins` of its resamples. Nothing moves unless every blocking check of
    `candidate` and `evaluation` holds for its latest materialization.
    Both versions keep the move, its reason and its evidence in their tag ``dagster_mlops.promoted``.

    The asset is the version that holds the alias: its record, and ``<name>/<version>`` as data version, so that what
    depends on it stays fresh when the candidate lost. Running it again, also after a kill, gives the same state.

    Everything else that :func:`dagster.asset` takes is passed on. The resource key is ``mlflow``.
    """
    rule = Rule(metric, greater_is_better, min_improvement)
    guards = [asset_key(asset) for asset in (candidate, evaluation) if asset is not None]

    def promote(context: dg.AssetExecutionContext, mlflow: MlflowResource) -> dg.MaterializeResult:
        challenger = made_by(context, guards[0], registered_model_name)
        compared = (
            same_rows(context, guards[1], challenger, alias, metric, min_wins, greater=greater_is_better)
            if evaluation
            else None
        )
        # Of a version that several partitions made at once, first...last, any tells.
        judged = {guards[0]: challenger.dagster_partition.rpartition("...")[2]}
        evidence = require_gates(context, guards, {**judged, **({guards[1]: compared.partition} if compared else {})})
        with mlflow.activate() as client:
            registry = Registry(client, registered_model_name, alias)
            move = promote_version(registry, challenger.version, rule, evidence, context.run.run_id, compared)
            holder = registry.holder()
            if holder is None:
                raise ModelVersionError(
                    f"{registered_model_name!r} has no {alias!r}: {move.why}. Train a version with a finite {metric!r}."
                )
            record = version_record(holder, mask_credentials(mlflow.uri))
            url = mlflow.version_url(record.name, record.version)
        context.log.info(f"{alias} of {registered_model_name} is version {record.version}: {move.why}")
        return dg.MaterializeResult(
            metadata={
                **record.to_metadata(),
                "mlflow/promoted": move.promoted,
                "mlflow/decision": _decision_table(move, metric),
                "mlflow/gates": evidence,
                "mlflow/champion_version": int(record.version) if record.version.isdigit() else record.version,
                **{f"mlflow/{who}_{metric}": value for who, value in move.values().items()},
                **({"mlflow/version_url": dg.MetadataValue.url(url)} if url else {}),
            },
            data_version=dg.DataVersion(f"{record.name}/{record.version}"),
        )

    options = merged_options(
        asset_options,
        name=name,
        description=f"Alias `{alias}` of `{registered_model_name}`, won by {metric}.",
        kinds=["mlflow"],
        deps=guards,
    )
    return dg.asset(**options)(promote)


@dataclass(frozen=True)
class Rule:
    """When a candidate is better."""

    metric: str
    greater_is_better: bool = True
    min_improvement: float = 0.0

    def judge(self, candidate: float, champion: float | None) -> tuple[bool, str]:
        """Whether the candidate wins, and why.

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


@dataclass(frozen=True)
class Move:
    """A decision about an alias, and what became of it."""

    promoted: bool
    why: str
    candidate: str
    candidate_value: float
    champion: str = ""  # who held the alias before
    champion_value: float | None = None

    def values(self) -> dict[str, float]:
        """The finite metric values, by role."""
        both = {"candidate": self.candidate_value, "champion_before": self.champion_value}
        return {who: value for who, value in both.items() if value is not None and math.isfinite(value)}


def promote_version(
    registry: Registry,
    version: str,
    rule: Rule,
    evidence: Mapping[str, bool],
    dagster_run_id: str,
    compared: SameRows | None = None,
) -> Move:
    """Move the alias to `version` if it wins: intent, move, verification, record; each step can be repeated.

    Raises:
        ModelVersionError: a version or metric is missing, or other promotions kept moving the alias.
        EvaluationError: `compared` is not about the two versions, or lacks the metric.
    """
    challenger = registry.version(version)
    value = compared.candidate() if compared else registry.metric(challenger, rule.metric)
    for _ in range(_TRIES):
        holder = registry.holder()
        before = str(holder.version) if holder else ""
        if before == version:
            return _complete(registry, version, value)
        held = registry.metric(holder, rule.metric) if holder and not compared else None
        held = compared.holder(before) if holder and compared else held
        wins, why = rule.judge(value, held)
        if wins and holder and compared:
            wins, why = compared.confirm(why)
        move = Move(wins, why, version, value, before, held)
        if not wins:
            return move
        event = {
            "alias": registry.alias,
            "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "from": before,
            "to": version,
            "why": why,
            "metric": rule.metric,
            "values": move.values(),
            "gates": dict(evidence),
            **({"evaluation": compared.to_dict()} if compared else {}),
            "dagster_run_id": dagster_run_id,
            "state": INTENDED,
        }
        registry.write_event(version, event)
        # MLflow cannot compare and set: look again right before, so that a rival's window is milliseconds.
        now = registry.holder()
        if (str(now.version) if now else "") != before:
            continue
        registry.client.set_registered_model_alias(registry.name, registry.alias, version)
        now = registry.holder()
        if now and str(now.version) == version:
            _record(registry, event)
            return move
    raise ModelVersionError(
        f"alias {registry.alias!r} of {registry.name!r} kept moving while version {version} was being promoted. Run "
        "one promotion at a time (give the asset a pool with limit 1), then re-run this one."
    )


def _complete(registry: Registry, version: str, value: float) -> Move:
    """The version holds the alias already: perhaps by a promotion that was killed before it wrote its record."""
    intended = [e for e in registry.events(version) if e["state"] == INTENDED and e["alias"] == registry.alias]
    if not intended:
        return Move(False, "it holds the alias already", version, value, version, value)
    event = intended[-1]
    _record(registry, event)
    return Move(True, event["why"], version, value, event["from"], event["values"].get("champion_before"))


def _record(registry: Registry, event: Mapping[str, Any]) -> None:
    done = {**event, "state": DONE}
    if event["from"]:
        registry.write_event(event["from"], done)
    registry.write_event(event["to"], done)


def _decision_table(move: Move, metric: str) -> dg.TableMetadataValue:
    before = "" if move.champion_value is None else f"{move.champion_value:.6g}"
    rows = [
        {"role": "candidate", "version": move.candidate, metric: f"{move.candidate_value:.6g}", "verdict": move.why},
        {"role": "champion before", "version": move.champion or "none", metric: before, "verdict": ""},
    ]
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows])
