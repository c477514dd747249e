"""A sensor that starts a run for each move of an alias: a promotion, a rollback, or one that was made by hand."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import dagster as dg

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.model_versions import holder, refuse_alias, refuse_model
from dagster_mlops.core.options import known_options
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.errors import HistoryError
from dagster_mlops.promotion.history.entry import BY_HAND, made
from dagster_mlops.promotion.history.log import Head, in_order, keeper_of, readable
from dagster_mlops.provenance import NAMESPACE
from dagster_mlops.tools import HoldsModels, KeepsHistory, ModelRegistry

_TARGETS = ("job", "jobs", "job_name", "target", "asset_selection")


def alias_sensor(
    *,
    registered_model_name: str,
    alias: str = "champion",
    registry: str = "mlflow",
    name: str | None = None,
    minimum_interval_seconds: int = 60,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
    **sensor_options: Any,
) -> dg.SensorDefinition:
    """Starts a run for each move of an alias: after a promotion, a rollback, or a move by hand in the registry's UI.

        redeploy = alias_sensor(registered_model_name="arrival_delay", asset_selection=["package", "deployment"])

    Each entry of the model's history starts one run, so that a return to an earlier version counts as well as another
    promotion of one. A move by hand that no promotion has written down yet starts its run when the sensor sees it, and
    none later. The first tick starts no run: the past is not repeated. A run gets the tags ``dagster_mlops/model``,
    ``…/alias``, ``…/version``, ``…/before`` and ``…/kind``; ``none`` stands for no version.

    Args:
        registered_model_name: The model.
        alias: The alias.
        registry: Key of the resource that holds the models.
        name: Name of the sensor; default: made of the model and the alias.
        minimum_interval_seconds: Seconds between ticks, not less than the 5 of Dagster's daemon. One without a move
            takes three requests to MLflow.
        default_status: Status until someone switches the sensor on or off.
        sensor_options: Whatever else :func:`dagster.sensor` takes, such as the ``job`` or ``asset_selection`` to run.

    Raises:
        HistoryError: nothing to run; in a tick: the history is damaged.
    """
    refuse_model(registered_model_name, registry)
    refuse_alias(alias, registry, "alias")
    if not any(sensor_options.get(target) for target in _TARGETS):
        raise HistoryError(
            f"alias_sensor of {registered_model_name!r} has nothing to run. Pass job=… or asset_selection=…."
        )

    @dg.sensor(
        name=name or "".join(char if char.isalnum() else "_" for char in f"{registered_model_name}_{alias}_moves"),
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        **{
            "description": f"Moves of alias {alias} of {registered_model_name}.",
            **known_options(sensor_options, dg.sensor),
            "required_resource_keys": {*sensor_options.get("required_resource_keys", ()), registry},
        },
    )
    def moves(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        cursor = Cursor.read(context.cursor) if context.cursor else None
        with capable_resource(context, registry, ModelRegistry).models() as models:
            requests, after = look(models, registered_model_name, alias, cursor)
        reason = None
        if cursor is None:
            reason = (
                f"It starts here: {alias} is on version {after.version or 'none'}, and earlier moves start no runs."
            )
        elif not requests:
            reason = f"{alias} of {registered_model_name} is on version {after.version or 'none'} since the last look."
        return dg.SensorResult(run_requests=requests, cursor=json.dumps(vars(after)), skip_reason=reason)

    return moves


@lazy_dataclass(frozen=True)
class Cursor:
    """The state after a look: entries seen, the holder, and moves by hand that are not in the history yet.

    `by_hand` is True if the holder came by one. `count` is how many there were, which tells two alike from each other.
    """

    entries: int
    version: str
    by_hand: bool = False
    count: int = 0

    @classmethod
    def read(cls, text: str) -> "Cursor":
        """The state in the position of a sensor, which anyone may set in Dagster's UI.

        Raises:
            HistoryError: it is not one.
        """
        try:
            cursor = cls(**json.loads(text))
            if [type(value) for value in vars(cursor).values()] == [int, str, bool, int]:
                return cursor
        except (ValueError, TypeError, RecursionError):
            pass
        raise HistoryError(
            f"{text[:100]!r} is not a position of this sensor. Set its cursor to nothing, in Dagster's UI or by "
            "`dagster sensor cursor --delete`: it then starts with the present, and earlier moves start no runs."
        )


def look(models: HoldsModels, model: str, alias: str, cursor: Cursor | None) -> tuple[list[dg.RunRequest], Cursor]:
    """The runs for the moves since `cursor`, and the next cursor."""
    keeper = keeper_of(models)
    size, version = Head.last_of(keeper.head(model), model).size, _holder(models, model, alias)
    if cursor and (size, version) == (cursor.entries, cursor.version):
        return [], cursor
    texts = in_order(keeper.history(model))
    size = min(size, len(texts))  # anyone may write a head
    real = made(entry for entry in readable(model, dict(enumerate(texts))).values() if entry.alias == alias)
    entries = {entry.index: entry for entry in real if entry.is_move}
    # The entry of a promotion comes before its move, and the head after it: one that has not moved yet has to wait.
    waiting = [entry for number, entry in entries.items() if number >= size]
    if not waiting or waiting[-1].after == version:
        size, waiting = max(size, len(texts)), []
    if cursor is None:
        return [], Cursor(size, version)
    size = max(size, cursor.entries)
    if len(texts) < cursor.entries:
        raise HistoryError(
            f"the history of {model!r} has {len(texts)} entries, where it had {cursor.entries}. See what is gone with "
            f"`dagster-mlops history verify {model}`, and restore it with `dagster-mlops history restore {model}`."
        )
    requests, seen, is_noticed = list[dg.RunRequest](), cursor.version, cursor.by_hand
    for number in range(cursor.entries, size):
        if entry := entries.get(number):
            # The move by hand that has started its run already is now written down.
            if not (is_noticed and entry.kind == BY_HAND and entry.after == seen):
                key = hashlib.sha256(texts[number].encode()).hexdigest()
                requests.append(_request(key, model, alias, entry.before, entry.after, entry.kind))
            seen, is_noticed = entry.after, False
    by_hand, count = is_noticed, cursor.count
    if version != seen and not waiting:
        if len(in_order(keeper.history(model))) > len(texts):  # a promotion came in between
            return requests, Cursor(size, seen, by_hand, count)
        kind = BY_HAND if isinstance(models, KeepsHistory) else "unknown"
        by_hand, count = True, count + 1
        requests.append(_request(f"{model}@{alias}:{size}:{count}", model, alias, seen, version, kind))
        seen = version
    return requests, Cursor(size, seen, by_hand, count)


def _request(key: str, model: str, alias: str, before: str, after: str, kind: str) -> dg.RunRequest:
    facts: Mapping[str, str] = {"model": model, "alias": alias, "version": after, "before": before, "kind": kind}
    return dg.RunRequest(run_key=key, tags={f"{NAMESPACE}/{fact}": value or "none" for fact, value in facts.items()})


def _holder(models: HoldsModels, model: str, alias: str) -> str:
    version = holder(models, model, alias)
    return version.version if version else ""
