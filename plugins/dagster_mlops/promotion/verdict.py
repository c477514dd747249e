"""The verdict of a gate on a candidate: a row for each rule, and what they rest on."""

import json
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.metadata import about

HOLDS, FAILS, WAITS = "holds", "fails", "waits"


@lazy_dataclass(frozen=True)
class Row:
    """The judgement of one rule."""

    rule: str = about("condition for the alias")
    verdict: str = about(f"'{HOLDS}', '{FAILS}' or, for people, '{WAITS}'")
    candidate: str = about("value of the candidate")
    champion: str = about("value of the version that holds the alias")
    limit: str = about("value that the candidate has to reach")
    why: str = about("reason")

    @classmethod
    def of(
        cls, rule: str, holds: bool, why: str, *, candidate: Any = None, champion: Any = None, limit: Any = None
    ) -> "Row":
        """A row with numbers in six digits, and an empty cell for None.

        >>> Row.of("auc at least 0.7", True, "0.7 or more", candidate=0.75).candidate
        '0.75'
        """
        cells = [_cell(value) for value in (candidate, champion, limit)]
        return cls(rule, HOLDS if holds else FAILS, cells[0], cells[1], cells[2], why)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


@lazy_dataclass(frozen=True)
class Verdict:
    """True in `promotes` if the candidate may have the alias.

    `values` are the finite metric values by role: ``candidate`` and ``champion_before``. `facts` is the evidence, as
    plain data for JSON.
    """

    promotes: bool
    why: str
    rows: tuple[Row, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def evidence(self) -> dict[str, Any]:
        """The facts for an entry of the history."""
        facts = {"gate": [dict(vars(row)) for row in self.rows], "values": dict(self.values), **self.facts}
        # JSON has no NaN and no infinity, and people's rules may bring other types: they become text.
        return json.loads(json.dumps(facts, default=str), parse_constant=str)
