"""Moves of an alias to a better version: decided, recorded and made while no other promoter is at it."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.model_versions import DONE, INTENDED, holder, moves, write_move
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.promotion.verdict import FAILS, Row, Verdict
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import HoldsModels, TakesTurns

# How often a promotion looks again when another one moves the alias at the same time.
_TRIES = 5


@lazy_dataclass(frozen=True)
class Move:
    """The outcome of a promotion: the verdict, and the version that held the alias before."""

    promoted: bool
    verdict: Verdict
    before: str = ""


def promote_version(
    registry: HoldsModels,
    candidate: ModelVersion,
    alias: str,
    judge: Callable[[ModelVersion | None], Verdict],
    dagster_run_id: str,
) -> Move:
    """Move the alias to `candidate` if `judge`, asked with the holder, says so; each step can be repeated.

    Raises:
        ModelVersionError: a version or metric is missing, or other promotions kept moving the alias.
        EvaluationError: the evidence is not about the two versions.
    """
    with registry.turn(candidate.name) if isinstance(registry, TakesTurns) else nullcontext():
        name, version = candidate.name, candidate.version
        for _ in range(_TRIES):
            champion = holder(registry, name, alias)
            before = champion.version if champion else ""
            verdict = judge(champion)
            if before == version:
                return _complete(registry, candidate, alias, verdict)
            if not verdict.promotes:
                return Move(False, verdict, before)
            event = {
                "alias": alias,
                "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "from": before,
                "to": version,
                "why": verdict.why,
                "values": dict(verdict.values),
                **verdict.facts,
                "dagster_run_id": dagster_run_id,
                "state": INTENDED,
            }
            write_move(registry, candidate, event)
            if registry.move(name, alias, version, expected=before):
                _record(registry, name, event)
                return Move(True, verdict, before)
        raise ModelVersionError(
            f"alias {alias!r} of {name!r} kept moving while version {version} was being promoted. Run one promotion "
            "at a time (give the asset a pool with limit 1), then re-run this one."
        )


def _complete(registry: HoldsModels, champion: ModelVersion, alias: str, verdict: Verdict) -> Move:
    """The outcome for a version that holds the alias already, perhaps by a promotion killed before its last record."""
    version = champion.version
    intended = [move for move in moves(registry, champion) if move["state"] == INTENDED and move["alias"] == alias]
    if not intended:
        return Move(False, _already(verdict), version)
    event = intended[-1]
    _record(registry, champion.name, event)
    return Move(True, Verdict(True, event["why"], values=event["values"]), event["from"])


def _already(verdict: Verdict) -> Verdict:
    why = "it holds the alias already"
    row = Row("another version", FAILS, *("", "", ""), why)
    return Verdict(False, why, (row,), verdict.values, verdict.facts)


def _record(registry: HoldsModels, name: str, event: Mapping[str, Any]) -> None:
    finished = {**event, "state": DONE}
    for version in (event["from"], event["to"]):
        if version:
            write_move(registry, registry.version(name, version), finished)
