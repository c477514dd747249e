"""Moves of an alias to a better version: decided, recorded and made while no other promoter is at it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import HistoryError, ModelVersionError
from dagster_mlops.promotion.approval import Approval
from dagster_mlops.promotion.author import Author
from dagster_mlops.promotion.decisions import with_approval
from dagster_mlops.promotion.history.entry import PROMOTION, ROLLBACK, Entry
from dagster_mlops.promotion.history.log import History, keeper_of
from dagster_mlops.promotion.history.rollbacks import rollback_of
from dagster_mlops.promotion.lifecycle import Lifecycle
from dagster_mlops.promotion.pointers import LIFECYCLE, follow, refuse_pointer
from dagster_mlops.promotion.verdict import FAILS, HOLDS, Row, Verdict
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import HoldsModels, KeepsHistory, turn_of

# How often a promotion looks again when another one moves the alias at the same time.
_TRIES = 5


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
    approval: Approval | None = None,
    lifecycle: Lifecycle | None = None,
) -> Move:
    """Move the alias to `candidate` if `judge`, asked with the holder, says so; each step can be repeated.

    With an `approval`, people have to agree as well: until then the move is not made, and the history has a request.

    `keeper` keeps the history if the registry does not. The aliases of a `lifecycle` follow.

    Raises:
        ModelVersionError: a version or metric is missing, or other promotions kept moving the alias.
        EvaluationError: the evidence is not about the two versions.
        HistoryError: the history of the model is damaged, or cannot be signed.
    """
    if approval and not isinstance(registry, KeepsHistory):
        raise HistoryError(
            f"the registry {registry.tool!r} keeps no history, which has requests and approvals. Promote without "
            "approval=, or in a registry that does, such as MLflow's."
        )
    keeper, names = keeper_of(registry, keeper), lifecycle.names() if lifecycle else {}
    with turn_of(registry, candidate.name):
        move = _moved(registry, candidate, alias, judge, author, keeper, approval, names)
        follow(registry, move.history, alias, names, candidate=candidate.version, approval=approval)
    return move


def _moved(
    registry: HoldsModels,
    candidate: ModelVersion,
    alias: str,
    judge: Callable[[ModelVersion | None], Verdict],
    author: Author,
    keeper: KeepsHistory,
    approval: Approval | None,
    names: Mapping[str, str],
) -> Move:
    name, version = candidate.name, candidate.version
    for _ in range(_TRIES):
        history = History(registry, keeper, name)
        before = history.settle(alias)
        if before and history.last(alias) is None:
            refuse_pointer(history, alias, before)
        if before == version:
            return Move(False, _already(judge(candidate)), "", history)
        verdict = judge(registry.version(name, before) if before else None)
        if names:
            verdict = replace(verdict, facts={**verdict.facts, LIFECYCLE: dict(names)})
        entries = history.entries(alias) if history.may_have(ROLLBACK) else []
        if rollback := rollback_of(candidate, entries):
            verdict = _refused(verdict, rollback)
        if verdict.promotes and approval:
            verdict = with_approval(approval, history, candidate, alias, before, verdict, author)
        if verdict and not verdict.promotes:
            return Move(False, verdict, before, history)
        if verdict is None:
            continue
        facts = {**verdict.evidence(), **author.facts()}
        if history.move(PROMOTION, alias, before, version, by=author.by, why=verdict.why, facts=facts):
            return Move(True, verdict, before, history)
    raise ModelVersionError(
        f"alias {alias!r} of {name!r} kept moving while version {version} was being promoted. Run one promotion "
        "at a time (give the asset a pool with limit 1), then re-run this one."
    )


def _already(verdict: Verdict) -> Verdict:
    why = "it holds the alias already"
    row = Row("another version", FAILS, *("", "", ""), why)
    return Verdict(False, why, (row,), verdict.values, verdict.facts)


def _refused(verdict: Verdict, rollback: Entry) -> Verdict:
    """The verdict on a version that a person has rolled back from, with a row that says so."""
    version, why = rollback.before, f"{rollback.by} rolled back from it on {rollback.at[:10]}: {rollback.why}"
    command = f"dagster-mlops rollback {rollback.model} --alias {rollback.alias} --lift {version} --reason …"
    row = Row.of("not rolled back", False, f"{why}. To lift it: `{command}`", candidate=version)
    return replace(verdict, promotes=False, why=why, rows=(*verdict.rows, row))


def recorded_verdict(entry: Entry) -> Verdict:
    """The verdict that an entry has on record, as far as it can be read."""
    facts: Mapping[str, Any] = entry.facts
    names = ("rule", "verdict", "candidate", "champion", "limit", "why")
    gate = facts.get("gate")
    rows = [Row(*(str(row.get(name, "")) for name in names)) for row in gate or () if isinstance(row, dict)]
    values = facts.get("values")
    return Verdict(True, entry.why, tuple(rows) or (Row("recorded", HOLDS, "", "", "", entry.why),), values or {})
