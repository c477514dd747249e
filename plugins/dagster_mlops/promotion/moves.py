"""Moves of an alias to a better version: decided, recorded and made while no other promoter is at it."""

import getpass
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import dagster as dg

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.promotion.history.entry import PROMOTION, Entry
from dagster_mlops.promotion.history.log import History, keeper_of
from dagster_mlops.promotion.verdict import FAILS, HOLDS, Row, Verdict
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import HoldsModels, KeepsHistory, TakesTurns

# How often a promotion looks again when another one moves the alias at the same time.
_TRIES = 5
_AUTOMATIONS = ("schedule", "sensor")


@lazy_dataclass(frozen=True)
class Author:
    """The one who moves an alias, and the Dagster run and asset by which it happens, if any."""

    by: str
    dagster_run_id: str = ""
    dagster_asset: str = ""

    def facts(self) -> dict[str, str]:
        """The facts for an entry."""
        return {"dagster_run_id": self.dagster_run_id, "dagster_asset": self.dagster_asset}


def author_of(context: dg.AssetExecutionContext) -> Author:
    """The schedule or sensor that launched a run, else the user that its process runs as."""
    tags = context.run.tags
    automation = next((f"{kind} {tags[name]}" for kind in _AUTOMATIONS if (name := f"dagster/{kind}_name") in tags), "")
    return Author(automation or user(), context.run.run_id, context.asset_key.to_user_string())


def user() -> str:
    """The name of the person or service that this process runs as; ``unknown`` for a user id without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # of Python 3.12 and 3.13
        return "unknown"


@lazy_dataclass(frozen=True)
class Move:
    """The outcome of a promotion: the verdict, the version that held the alias before, and the history as it is now."""

    promoted: bool
    verdict: Verdict
    before: str
    history: History


def promote_version(
    registry: HoldsModels,
    candidate: ModelVersion,
    alias: str,
    judge: Callable[[ModelVersion | None], Verdict],
    author: Author,
    keeper: KeepsHistory | None = None,
) -> Move:
    """Move the alias to `candidate` if `judge`, asked with the holder, says so; each step can be repeated.

    `keeper` keeps the history if the registry does not.

    Raises:
        ModelVersionError: a version or metric is missing, or other promotions kept moving the alias.
        EvaluationError: the evidence is not about the two versions.
        HistoryError: the history of the model is damaged, or cannot be signed.
    """
    name, version, keeper = candidate.name, candidate.version, keeper_of(registry, keeper)
    with registry.turn(name) if isinstance(registry, TakesTurns) else nullcontext():
        for _ in range(_TRIES):
            history = History(registry, keeper, name)
            before = history.settle(alias)
            if before == version:
                return _held(history, history.completed.get(alias), judge(candidate))
            verdict = judge(registry.version(name, before) if before else None)
            if not verdict.promotes:
                return Move(False, verdict, before, history)
            facts = {**evidence(verdict), **author.facts()}
            if history.move(PROMOTION, alias, before, version, by=author.by, why=verdict.why, facts=facts):
                return Move(True, verdict, before, history)
        raise ModelVersionError(
            f"alias {alias!r} of {name!r} kept moving while version {version} was being promoted. Run one promotion "
            "at a time (give the asset a pool with limit 1), then re-run this one."
        )


def evidence(verdict: Verdict) -> dict[str, Any]:
    """The facts of a verdict for an entry."""
    return {"gate": [dict(vars(row)) for row in verdict.rows], "values": dict(verdict.values), **verdict.facts}


def _held(history: History, completed: Entry | None, verdict: Verdict) -> Move:
    """The outcome for a version that holds the alias already, perhaps since a promotion that was killed."""
    if completed is None:
        why = "it holds the alias already"
        row = Row("another version", FAILS, *("", "", ""), why)
        return Move(False, Verdict(False, why, (row,), verdict.values, verdict.facts), "", history)
    return Move(True, recorded_verdict(completed), completed.before, history)


def recorded_verdict(entry: Entry) -> Verdict:
    """The verdict that an entry has on record, as far as it can be read."""
    facts: Mapping[str, Any] = entry.facts
    names = ("rule", "verdict", "candidate", "champion", "limit", "why")
    gate = facts.get("gate")
    rows = [Row(*(str(row.get(name, "")) for name in names)) for row in gate or () if isinstance(row, dict)]
    values = facts.get("values")
    return Verdict(True, entry.why, tuple(rows) or (Row("recorded", HOLDS, "", "", "", entry.why),), values or {})
