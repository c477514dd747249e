"""Promotion: an alias moves to the candidate when every rule holds."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.gates import require_gates
from dagster_mlops.core.metadata import link, table
from dagster_mlops.core.model_versions import holder, made_by, refuse_alias, refuse_model, registry_kind, version_of
from dagster_mlops.core.options import asset_with
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.errors import EvaluationError, ModelVersionError
from dagster_mlops.promotion.approval import Approval
from dagster_mlops.promotion.approval_assets import waiting_metadata
from dagster_mlops.promotion.author import author_of
from dagster_mlops.promotion.case import Case, Rule
from dagster_mlops.promotion.error_budget import judged
from dagster_mlops.promotion.gate import Gate
from dagster_mlops.promotion.lifecycle import Lifecycle
from dagster_mlops.promotion.rules.improvement import Better, Improvement
from dagster_mlops.promotion.verdict import WAITS
from dagster_mlops.tools import ModelRegistry


def promotion_asset(
    *,
    candidate: AssetLike,
    registered_model_name: str,
    metric: str | None = None,
    greater_is_better: bool = True,
    min_improvement: float = 0.0,
    rules: Sequence[Rule] = (),
    alias: str = "champion",
    name: str = "champion",
    evaluation: AssetLike | None = None,
    error_rate: float | None = 0.05,
    looks: int = 52,
    approval: Approval | None = None,
    lifecycle: Lifecycle | None = None,
    registry: str = "mlflow",
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset that moves `alias` to the version that the asset `candidate` made, if every rule holds.

        champion = promotion_asset(
            candidate=dg.AssetKey("arrival_delay_model"), registered_model_name="arrival_delay", metric="auc",
            min_improvement=0.002, rules=[AtMost(metric="log_loss", limit=0.5), CompleteProvenance()],
        )

    `metric` is the rule that the candidate is better: its metric improves on the current holder's by `min_improvement`
    or more. A tie, and a metric that is not finite, never win. With `evaluation`, an :func:`evaluation_asset`, metrics
    are those of both versions on its rows, and the difference must not be chance: of `looks` candidates that are no
    better, such as those of a year of weeks, one is promoted with a probability of `error_rate` at most, so that each
    is asked for a p-value of ``error_rate / looks``. ``error_rate=None`` takes every improvement. `rules` are further
    conditions. A rule that cannot be judged, because a value is missing, fails and says what to do. With an `approval`,
    people have to agree once all rules hold. No run waits for them: this one ends with the request, and the alias moves
    when the asset is materialized after their approval, which :func:`approval_sensor` does. A `lifecycle` names further
    aliases, which only show where a version is on its way: as candidate, challenger or previous champion.

    Nothing moves unless every blocking check of `candidate` and `evaluation` holds for its latest materialization, too.
    Each move, its reason and its evidence are an entry of the model's history, which the registry and Dagster's event
    log both keep; `dagster-mlops history` shows it.

    The asset is the version that holds the alias: its record, and ``<name>/<version>`` as data version, so that what
    depends on it stays fresh when the candidate lost. Running it again, also after a kill, gives the same state.

    `registry` is the key of the resource that holds the models. Everything else that :func:`dagster.asset` takes is
    passed on.
    """
    refuse_model(registered_model_name, registry)
    refuse_alias(alias, registry, "alias")
    if not isinstance(rules, Sequence) or isinstance(rules, str):
        raise dg.DagsterInvalidDefinitionError(f"rules={rules!r} is not a list of rules. Give a list: rules=[…].")
    all_rules: tuple[Rule, ...] = tuple(rules)
    for argument, value, expected in (("approval", approval, Approval), ("lifecycle", lifecycle, Lifecycle)):
        if value is not None and not isinstance(value, expected):
            raise dg.DagsterInvalidDefinitionError(
                f"{argument}={value!r} is not an object such as {expected.__name__}()."
            )
    refuse_useless(
        "promotion_asset",
        {
            "candidate=None names no asset. Name the one that makes the versions": candidate is None,
            f"min_improvement={min_improvement!r} and greater_is_better={greater_is_better!r} are about metric=, which "
            "is missing. Name it, or give them to a rule, such as Improvement(absolute=…)": not metric
            and (min_improvement != 0 or not greater_is_better),
            f"error_rate={error_rate!r} and looks={looks!r} are about metric= on the rows of evaluation=, one of which "
            "is missing. Name both, or give them to a rule, such as Better(error_rate=…)": (
                not metric or evaluation is None
            )
            and (error_rate not in (0.05, None) or looks != 52),
        },
    )
    if metric:
        compared: dict[str, Any] = {"metric": metric, "greater_is_better": greater_is_better}
        budget = {"error_rate": 0.05 if error_rate is None else error_rate, "looks": looks}
        first: Rule = Better(**compared, min_improvement=min_improvement, **budget)
        if evaluation is None or error_rate is None:
            first = Improvement(**compared, absolute=min_improvement)
        all_rules = (first, *all_rules)
    _refuse(all_rules, evaluation is not None)
    if approval:
        approval.refuse_impossible()
    if lifecycle:
        lifecycle.refuse_impossible(alias, has_approval=approval is not None)
    guards = [asset_key(asset) for asset in (candidate, evaluation) if asset is not None]

    def promote(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        # For steps, not for code locations.
        from dagster_mlops.evaluation.promotion_evidence import SameRows, same_rows
        from dagster_mlops.promotion.history.event_log import mirror, mirror_now
        from dagster_mlops.promotion.moves import promote_version
        from dagster_mlops.promotion.pointers import require_aliases, show_candidate
        from dagster_mlops.promotion.timeline import timeline

        resource = capable_resource(context, registry, ModelRegistry)
        challenger = made_by(context, guards[0], registered_model_name)
        rows: SameRows | EvaluationError | None = None
        # The candidate may be another promotion: then an asset before it made the version, in a partition of its own.
        trained = asset_key(challenger.dagster_asset) if challenger.dagster_asset else guards[0]
        # Where several partitions, first...last, made a version at once, any of them has its checks.
        partitions = {guards[0]: challenger.dagster_partition.rpartition("...")[2] if trained == guards[0] else ""}
        if evaluation is not None:
            try:
                rows = same_rows(context, guards[1], challenger, alias)
                partitions[guards[1]] = rows.partition
            except EvaluationError as error:
                rows = error
        evidence = require_gates(context, guards, partitions)
        with resource.models() as models, TemporaryDirectory(prefix="dagster-mlops-") as scratch:
            version, count = version_of(models, challenger), 1
            if lifecycle:
                require_aliases(models)
                show_candidate(models, version, alias, lifecycle)
            if isinstance(rows, SameRows) and any(isinstance(rule, Better) for rule in all_rules):
                count = judged(context, models.tool, rows.evaluation.rows_hash, version.version)
            fetch = cache(lambda stored: models.fetch(stored, Path(mkdtemp(dir=scratch))))
            case = Case(models, version, None, rows, count, trained, context, fetch)
            gate = Gate(all_rules, case, evidence)
            judge = cache(gate.judge)
            judge(holder(models, registered_model_name, alias))  # what takes long, before others wait for their turn
            author = author_of(context)
            move = promote_version(models, version, alias, judge, author, approval=approval, lifecycle=lifecycle)
            verdict, look = move.verdict, gate.look
            record = holder(models, registered_model_name, alias)
            waits = any(row.verdict == WAITS for row in verdict.rows)
            if record is None and not waits:
                mirror_now(context.instance, context.asset_key, models.tool, move.history, version.ref.at)
                raise ModelVersionError(
                    f"{registered_model_name!r} has no {alias!r}: {verdict.why.rstrip('.')}. Train a version for which "
                    "every rule holds."
                )
            tool, url = models.tool, models.url(record) if record else ""
        current = record.version if record else "none"
        context.log.info(f"{alias} of {registered_model_name} is version {current}: {verdict.why}")
        picture = timeline(move.history.newest(alias), alias, tool=registry)
        facts = {
            f"{tool}/promoted": move.promoted,
            **waiting_metadata(context, tool, verdict),
            **table(f"{tool}/decision", verdict.rows),
            **({f"{tool}/timeline": picture} if picture else {}),
            f"{tool}/champion_version": int(current) if current.isdigit() else current,
            **(look.to_metadata(tool) if look else {}),
            **{f"{tool}/{role}_{gate.metric}": value for role, value in verdict.values.items()},
            f"{tool}/gates": evidence,
            **mirror(context, tool, move.history, version.ref.at),
            **link(f"{tool}/version_url", url),
        }
        return dg.MaterializeResult(
            metadata=record.to_metadata(facts) if record else facts,
            data_version=dg.DataVersion(f"{registered_model_name}/{current}"),
        )

    return asset_with(
        asset_options,
        name=name,
        description=f"Alias `{alias}` of `{registered_model_name}`. Rules: {'; '.join(r.name for r in all_rules)}.",
        kinds=[registry_kind(registry)],
        required_resource_keys=[registry],
        deps=guards,
    )(promote)


def _refuse(rules: Sequence[Rule], has_evaluation: bool) -> None:
    if not rules:
        raise dg.DagsterInvalidDefinitionError(
            "promotion_asset has no rule, so that every candidate would win. Give metric='auc', or rules=[…]."
        )
    for rule in rules:
        if isinstance(rule, type) or not callable(getattr(rule, "judge", None)) or not getattr(rule, "name", ""):
            raise dg.DagsterInvalidDefinitionError(
                f"{rule!r} is not a rule. Give objects such as AtLeast(metric='auc', limit=0.7)."
            )
        if getattr(rule, "needs_evaluation", False) and not has_evaluation:
            raise dg.DagsterInvalidDefinitionError(
                f"the rule {rule.name!r} compares on the rows of an evaluation. Name one by evaluation=."
            )
