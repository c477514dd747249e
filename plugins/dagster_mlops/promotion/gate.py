"""The gate of a promotion: its rules, judged on a candidate and the version that holds the alias."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from typing import Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.metadata import shorten
from dagster_mlops.errors import DagsterMlopsError
from dagster_mlops.promotion.case import Case, Rule
from dagster_mlops.promotion.error_budget import Look
from dagster_mlops.promotion.rules.improvement import Better
from dagster_mlops.promotion.verdict import HOLDS, Row, Verdict
from dagster_mlops.provenance import ModelVersion, mask_credentials

_REASON = 1000  # characters; it goes into a note on both versions


@lazy_dataclass(frozen=True)
class Gate:
    """The decision about a candidate: it may have the alias if every rule holds.

    `checks` are the verdicts of asset checks, as ``asset:check`` → passed.
    """

    rules: Sequence[Rule]
    case: Case
    checks: Mapping[str, bool] = field(default_factory=dict)

    @property
    def look(self) -> Look | None:
        """The candidate's share of the error rate of the first rule that has one."""
        budgets = [rule.budget for rule in self.rules if isinstance(rule, Better)]
        rows = self.case.rows
        if not budgets or rows is None:
            return None
        return Look(budgets[0], rows.evaluation.rows_hash, self.case.candidate.version, self.case.judged)

    @property
    def metric(self) -> str:
        """The first metric that a rule names."""
        return next((name for rule in self.rules if (name := getattr(rule, "metric", ""))), "")

    def judge(self, champion: ModelVersion | None) -> Verdict:
        """The verdict on the candidate, beside the version that holds the alias; a row for each rule, at least."""
        other = champion if champion and champion.version != self.case.candidate.version else None
        case = dataclasses.replace(self.case, champion=other)
        rows = tuple(row for rule in self.rules for row in _judged(rule, case))
        failing = [row for row in rows if row.verdict != HOLDS]
        # The reason for a promotion is its first rule, which is the metric if there is one: the table has them all.
        decisive = failing or rows[:1]
        whys = [row.why if len(rows) == 1 or not failing else f"{row.rule}: {row.why}" for row in decisive]
        whys += [f"{len(rows) - 1} more hold"] if len(rows) > 1 and not failing else []
        rows_of_both, look = case.rows, self.look
        facts: dict[str, Any] = {
            "metric": self.metric,
            "checks": dict(self.checks),
            **({"evaluation": rows_of_both.to_dict(self.metric)} if rows_of_both else {}),
            **({"error_budget": look.to_dict()} if look else {}),
        }
        return Verdict(
            promotes=bool(rows) and not failing,
            why=shorten("; ".join(whys), _REASON),
            rows=rows,
            values=_values(case, self.metric),
            facts=facts,
        )


def _judged(rule: Rule, case: Case) -> Sequence[Row]:
    try:
        rows = list(rule.judge(case))  # a rule may be a generator
        if wrong := next((row for row in rows if not isinstance(row, Row)), None):
            raise TypeError(f"judge() gives Row objects, and not {type(wrong).__name__}")
        rows = [Row(*(str(value) for value in vars(row).values())) for row in rows]
    except Exception as error:  # noqa: BLE001 - whatever broke, the other rules keep their rows, and this one fails
        crash = "" if isinstance(error, DagsterMlopsError) else f"the rule crashed: {type(error).__name__}: "
        rows = [Row.of(rule.name, False, mask_credentials(f"{crash}{error}"))]
    return rows or [Row.of(rule.name, False, "the rule has no verdict: its judge() returned no row")]


def _values(case: Case, metric: str) -> dict[str, float]:
    """The finite values of a metric, by role."""
    values: dict[str, float | None] = {}
    for role, read in (("candidate", case.metric), ("champion_before", case.champion_metric)):
        with suppress(Exception):  # a rule has it as its reason
            values[role] = read(metric)
    return {role: value for role, value in values.items() if value is not None and math.isfinite(value)}
