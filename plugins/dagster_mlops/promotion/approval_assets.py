"""Approval in Dagster's UI: an asset by which a person decides, and a sensor that promotes after it."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.asset_records import asset_graph
from dagster_mlops.core.metadata import table
from dagster_mlops.core.model_versions import refuse_alias, refuse_model, registry_kind
from dagster_mlops.core.options import asset_with, known_options
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.promotion.approval import WAITS_FOR, decisions, new_notes, requests
from dagster_mlops.promotion.author import author_of, user
from dagster_mlops.promotion.decisions import decide, request_of
from dagster_mlops.promotion.history.entry import APPROVAL, REJECTION
from dagster_mlops.promotion.history.event_log import mirror_now
from dagster_mlops.promotion.history.log import History, keeper_of
from dagster_mlops.promotion.moves import recorded_verdict
from dagster_mlops.promotion.verdict import WAITS, Verdict
from dagster_mlops.provenance import NAMESPACE
from dagster_mlops.tools import HoldsModels, ModelRegistry

APPROVES = f"{NAMESPACE}/approves"
"""Key in the metadata of an approval asset: the promotion asset that it is about."""


class ApprovalConfig(dg.Config):
    """The decision of a person. All of it has defaults, so that *Materialize* approves the only version that waits."""

    by: str = ""
    comment: str = ""
    version: str = ""
    approve: bool = True


def approval_asset(
    *,
    promotion: AssetLike,
    registered_model_name: str,
    alias: str = "champion",
    name: str = "approval",
    by: str = "",
    registry: str = "mlflow",
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset that is materialized by a person: it approves the version that waits for `alias`.

        approval = approval_asset(promotion=champion, registered_model_name="arrival_delay")

    Its config names the person (``by``; by default that of the option `by`, else the user that the run's process is), a
    ``comment``, the ``version`` where several wait, and ``approve: false`` to reject. It shows the rows of the gate
    that the person decides about. In a run that a schedule or sensor has launched, or that makes the promotion as well,
    such as *Materialize all*, it decides nothing. Everything else that :func:`dagster.asset` takes is passed on.
    """
    refuse_model(registered_model_name, registry)
    refuse_alias(alias, registry, "alias")
    key = asset_key(promotion)

    def approve(context: dg.AssetExecutionContext, config: ApprovalConfig) -> Iterator[dg.MaterializeResult]:
        if author_of(context).by != user() or key in context.job_def.asset_layer.selected_asset_keys:
            context.log.warning("Nothing was decided: a person decides in a run of this asset alone.")
            return
        resource = capable_resource(context, registry, ModelRegistry)
        kind = APPROVAL if config.approve else REJECTION
        with resource.models() as models:
            entry, history = decide(
                models,
                registered_model_name,
                kind,
                by=config.by or by or user(),
                why=config.comment,
                version=config.version,
                alias=alias,
            )
            request = request_of(history, entry)
            tool = models.tool
        mirror_now(context.instance, key, tool, history)
        yield dg.MaterializeResult(
            metadata={
                f"{tool}/decided": kind,
                f"{tool}/version": entry.after,
                f"{tool}/by": entry.by,
                f"{tool}/comment": entry.why,
                **table(f"{tool}/decision", recorded_verdict(request).rows),
            }
        )

    return asset_with(
        asset_options,
        name=name,
        description=f"Approval{f' by {by}' if by else ''} of the version that waits for `{alias}` of "
        f"`{registered_model_name}`. Materialize it to approve. Shift-click *Materialize* to give a name or a comment, "
        "or to reject.",
        kinds=[registry_kind(registry)],
        metadata={APPROVES: dg.MetadataValue.asset(key)},
        output_required=False,
        required_resource_keys=[registry],
        # Downstream of the promotion, it would be out of date after each one, though no decision is open.
    )(approve)


def waiting_metadata(context: dg.AssetExecutionContext, tool: str, verdict: Verdict) -> dict[str, Any]:
    """The row about people, and links to the assets by which they approve; empty if the promotion does not wait."""
    row = next((row for row in verdict.rows if row.verdict == WAITS), None)
    if row is None:
        return {}
    graph, this = asset_graph(context), dg.MetadataValue.asset(context.asset_key)
    keys = [key for key in graph.get_all_asset_keys() if graph.get(key).metadata.get(APPROVES) == this]
    links = [dg.MetadataValue.asset(key) for key in sorted(keys)]
    names = [f"{tool}/approve", *(f"{tool}/approve_{number}" for number in range(2, len(links) + 1))]
    return {f"{tool}/{WAITS_FOR}": f"{row.rule}: {row.why}", **dict(zip(names, links, strict=False))}


def approval_sensor(
    *,
    promotion: AssetLike,
    registered_model_name: str,
    alias: str = "champion",
    name: str = "after_approval",
    registry: str = "mlflow",
    minimum_interval_seconds: int = 30,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
    **sensor_options: Any,
) -> dg.SensorDefinition:
    """Materializes a promotion asset after a decision about the version that waits, by whatever way it was made.

        dg.Definitions(assets=[champion], sensors=[approval_sensor(promotion=champion, registered_model_name="delay")])

    It asks the registry every `minimum_interval_seconds`. Each decision launches one run, which judges the gate again.
    Everything else that :func:`dagster.sensor` takes is passed on.
    """
    refuse_model(registered_model_name, registry)
    refuse_alias(alias, registry, "alias")
    key = asset_key(promotion)

    @dg.sensor(
        name=name,
        asset_selection=dg.AssetSelection.assets(key),
        required_resource_keys={registry},
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        **{
            "description": f"Promotes after an approval for `{alias}` of `{registered_model_name}`.",
            **known_options(sensor_options, dg.sensor),
        },
    )
    def after_approval(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        resource: ModelRegistry = getattr(context.resources, registry)
        with resource.models() as models:
            decided = identity(models)
        if not decided:
            return dg.SkipReason(f"No new decision about a version that waits for {alias!r}.")
        return dg.RunRequest(run_key=decided, asset_selection=[key])

    def identity(models: HoldsModels) -> str:
        """The identity of all decisions about the versions that wait; empty without any."""
        history = History(models, keeper_of(models), registered_model_name)
        entries = history.since_last_move(alias)
        facts: list[str] = []
        for request in requests(entries, alias):
            answers = decisions(entries, request)
            facts += [f"{entry.index} {entry.by} {entry.at}" for entry in answers if "note" not in entry.facts]
            notes = {str(entry.facts["note"]) for entry in answers if "note" in entry.facts}
            with suppress(ModelVersionError):  # a version that was deleted while it waited
                notes |= new_notes(models, models.version(registered_model_name, request.after), request)
            facts += sorted(notes)
        return hashlib.sha256("\n".join(facts).encode()).hexdigest() if facts else ""

    return after_approval
