"""The chance of a wrong promotion, spread over the candidates that one error rate covers.

Equally good candidates that are compared again and again with a champion on the same rows replace it sooner or later:
at 95 %, in three years of ten. Each of `looks` candidates therefore gets an equal part of the rate. That bound
(Bonferroni's) holds however the tests depend on each other, and these do: they share the rows and the champion. It also
holds for candidates that were chosen by earlier verdicts, since until a wrong promotion these verdicts are all "no"
(A. Blum and M. Hardt, The Ladder, 2015). `python -m tests.benchmarks promotion` compares it with spending that is
adapted to the p-values, which finds fewer of the better candidates in the middle of a year.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from dagster_mlops.core.lazy_dataclass import lazy_dataclass

_PAGE = 200  # materializations
ROWS, CANDIDATE = "judged_rows", "judged_version"  # ends of metadata keys, after the registry's name


@lazy_dataclass(frozen=True)
class ErrorBudget:
    """The rate at which a series of `looks` candidates that are no better may promote one of them.

    >>> ErrorBudget(0.05, 50).level
    0.001
    """

    error_rate: float
    looks: int

    @property
    def level(self) -> float:
        """The p-value up to which one candidate counts as better."""
        return self.error_rate / self.looks

    def left(self, count: int) -> str:
        """The candidates that rows can still judge after the first `count`, in a sentence.

        >>> ErrorBudget(0.05, 26).left(17)
        'these rows have judged 17 candidates; 9 more before they must be renewed'
        """
        more = max(0, self.looks - count)
        return f"these rows have judged {count} candidates; {more} more before they must be renewed"


@lazy_dataclass(frozen=True)
class Look:
    """A candidate's comparison on the rows with this hash, which have judged `count` candidates with this one."""

    budget: ErrorBudget
    rows_hash: str
    version: str
    count: int

    def judge(self, p_value: float | None, test: str) -> tuple[bool, str]:
        """True if the test shows a difference, and the reason.

        >>> Look(ErrorBudget(0.05, 50), "ab12", "7", 3).judge(0.0004, "DeLong")
        (True, 'p = 0.0004 (DeLong), 0.001 or less shows a difference')
        """
        budget = self.budget
        if self.count > budget.looks:
            return False, (
                f"these rows have judged {self.count - 1} candidates, and the error rate of {budget.error_rate:g} "
                f"covers {budget.looks}: renew the rows of the evaluation"
            )
        if p_value is None:
            return False, f"not tested: {test}. Choose another metric, or error_rate=None"
        reason = f"p = {p_value:.2g} ({test}), {budget.level:.2g} or less shows a difference"
        if p_value <= budget.level:
            return True, reason
        return False, f"{reason} ({budget.error_rate:g} over {budget.looks} candidates)"

    def to_dict(self) -> dict[str, Any]:
        """The facts that a version's history of promotions keeps."""
        return {"error_rate": self.budget.error_rate, "looks": self.budget.looks, "judged": self.count}

    def to_metadata(self, tool: str) -> dict[str, Any]:
        """The facts on the promotion asset, among them those that the next look counts."""
        return {
            f"{tool}/error_budget": self.budget.left(self.count),
            f"{tool}/judged": self.count,
            f"{tool}/{ROWS}": self.rows_hash,
            f"{tool}/{CANDIDATE}": self.version,
        }


def judged(context: dg.AssetExecutionContext, tool: str, rows_hash: str, version: str) -> int:
    """The number of candidates that these rows have judged, with this one, by what Dagster has of the promotion."""
    versions, cursor, has_more = {version}, None, True
    while has_more:
        page = context.instance.fetch_materializations(context.assets_def.key, limit=_PAGE, cursor=cursor)
        cursor, has_more = page.cursor, page.has_more
        for event in page.records:
            facts: Mapping[str, Any] = event.asset_materialization.metadata if event.asset_materialization else {}
            if (rows := facts.get(f"{tool}/{ROWS}")) and rows.value == rows_hash:
                versions.add(str(facts[f"{tool}/{CANDIDATE}"].value))
    return len(versions)
