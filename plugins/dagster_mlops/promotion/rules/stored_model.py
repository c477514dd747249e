"""The stored files of the candidate: their size, and the inputs that they ask for."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.rules.options import is_finite, option
from dagster_mlops.promotion.verdict import Row
from dagster_mlops.provenance import ModelVersion

# A number that is sent today is one of the wider type, too: a model is loaded so that it gets the types it asks for.
_WIDER = {("integer", "long"), ("integer", "double"), ("long", "double"), ("float", "double")}


@lazy_dataclass(frozen=True, kw_only=True)
class ModelSize:
    """The stored files of the candidate take no more than a number of megabytes."""

    max_megabytes: float = option("Greatest size of all files of the stored model, in megabytes (10^6 bytes).")

    def __post_init__(self) -> None:
        size = self.max_megabytes
        wrong = not is_finite(size) or size <= 0
        refuse_useless("ModelSize", {f"max_megabytes={size!r} is not a finite number above 0": wrong})

    @property
    def name(self) -> str:
        return f"model size at most {self.max_megabytes:g} MB"

    def judge(self, case: Case) -> Sequence[Row]:
        """The size of the candidate."""
        files = case.stored(case.candidate).folder.rglob("*")
        size = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
        holds = size <= self.max_megabytes
        why = f"its files take {size:.3g} MB" + ("" if holds else f", and at most {self.max_megabytes:g} MB is allowed")
        return [Row.of(self.name, holds, why, candidate=f"{size:.3g} MB", limit=f"{self.max_megabytes:g} MB")]


@lazy_dataclass(frozen=True, kw_only=True)
class CompatibleSignature:
    """Inputs that the champion gets today still work: no new required one, and none of another type.

    An input may get a wider number type, become optional, or go away.
    """

    @property
    def name(self) -> str:
        return "signature compatible with the champion's"

    def judge(self, case: Case) -> Sequence[Row]:
        """The inputs of both, and those with which clients would fail."""
        if case.champion is None:
            return [Row.of(self.name, True, "no other version holds the alias")]
        candidate, champion = _inputs(case, case.candidate), _inputs(case, case.champion)
        problems = [
            problem for name, column in candidate.items() if (problem := _problem(name, column, champion.get(name)))
        ]
        why = "; ".join(problems)
        advice = "Train it with the inputs of the champion, or move the alias by hand once clients have changed."
        return [
            Row.of(
                self.name,
                not problems,
                f"{why}. {advice}" if problems else "every input that the champion gets still works",
                candidate=f"inputs: {len(candidate)}",
                champion=f"inputs: {len(champion)}",
            )
        ]


def _inputs(case: Case, version: ModelVersion) -> dict[str, Mapping[str, Any]]:
    """The inputs of a version by name, as MLflow's signature has them; by position where they have no names."""
    text = case.stored(version).signature.get("inputs")
    if not text:
        raise ModelVersionError(
            f"version {version.version} of {version.name!r} has no signature. Log models with "
            "signature=infer_signature(…); to replace this version, move the alias by hand."
        )
    return {str(column.get("name", position)): column for position, column in enumerate(json.loads(text))}


def _problem(name: str, column: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    required = column.get("required", True)
    if before is None:
        return f"{name!r} is new and required" if required else ""
    if required and not before.get("required", True):
        return f"{name!r} was optional and is required"
    old, new = _type(before), _type(column)
    return "" if old == new or (old, new) in _WIDER else f"{name!r} was {old} and is {new}"


def _type(column: Mapping[str, Any]) -> str:
    facts = {key: value for key, value in column.items() if key not in ("name", "required")}
    return str(facts["type"]) if list(facts) == ["type"] else json.dumps(facts)
