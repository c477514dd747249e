"""The gate of a promotion: its rule, judged on a candidate and the version that holds the alias."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.promotion.error_budget import Look
from dagster_mlops.promotion.verdict import FAILS, HOLDS, Row, Verdict
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.tools import HoldsModels

if TYPE_CHECKING:
    from dagster_mlops.evaluation.promotion_evidence import SameRows


@lazy_dataclass(frozen=True)
class Rule:
    """The condition on which a candidate is better."""

    metric: str
    greater_is_better: bool = True
    min_improvement: float = 0.0

    def judge(self, candidate: float, champion: float | None) -> tuple[bool, str]:
        """True if the candidate wins, and the reason.

        >>> Rule("auc", min_improvement=0.01).judge(0.745, 0.74)
        (False, 'auc 0.745 against 0.74: improvement 0.005 is less than 0.01')
        >>> Rule("rmse", greater_is_better=False).judge(1.5, 2.0)
        (True, 'rmse 1.5 against 2: improvement 0.5')
        """
        if not math.isfinite(candidate):
            return False, f"the candidate's {self.metric} is {candidate}"
        if champion is None:
            return True, f"{self.metric} {candidate:.6g}: the first to hold the alias"
        if not math.isfinite(champion):
            return True, f"{self.metric} {candidate:.6g} against {champion}"
        improvement = (candidate - champion) * (1 if self.greater_is_better else -1)
        compared = f"{self.metric} {candidate:.6g} against {champion:.6g}"
        if improvement <= 0:
            return False, f"{compared}: no improvement"
        # A billionth of slack: 0.745 - 0.74 is a little less than 0.005 in binary.
        if improvement < self.min_improvement * (1 - 1e-9):
            return False, f"{compared}: improvement {improvement:.6g} is less than {self.min_improvement:.6g}"
        return True, f"{compared}: improvement {improvement:.6g}"


@lazy_dataclass(frozen=True)
class Gate:
    """The decision about a candidate: a rule, and the comparison on the same rows with its share of the error rate.

    `checks` are the verdicts of asset checks, as ``asset:check`` → passed.
    """

    rule: Rule
    checks: Mapping[str, bool]
    compared: "SameRows | None" = None
    look: Look | None = None

    def judge(self, registry: HoldsModels, candidate: ModelVersion, champion: ModelVersion | None) -> Verdict:
        """The verdict on a candidate, beside the version that holds the alias.

        Raises:
            ModelVersionError: a metric is missing.
            EvaluationError: the comparison is not about the two versions, or lacks the metric.
        """
        rule, compared, look = self.rule, self.compared, self.look
        value = compared.candidate() if compared else _metric(registry, candidate, rule.metric)
        before = None
        if champion and champion.version != candidate.version:
            before = compared.holder(champion.version) if compared else _metric(registry, champion, rule.metric)
        promotes, why = rule.judge(value, before)
        if promotes and before is not None and compared and look:
            promotes, confirmed = look.judge(compared.difference.p_value, compared.difference.test)
            why = f"{why}; {confirmed}"
        by_role = {"candidate": value, "champion_before": before}
        facts: dict[str, Any] = {
            "metric": rule.metric,
            "checks": dict(self.checks),
            **({"evaluation": compared.to_dict()} if compared else {}),
            **({"error_budget": look.to_dict()} if look else {}),
        }
        row = Row(
            rule=f"better {rule.metric}",
            verdict=HOLDS if promotes else FAILS,
            candidate=f"{value:.6g}",
            champion="" if before is None else f"{before:.6g}",
            limit=f"{rule.min_improvement:.6g}" if rule.min_improvement else "",
            why=why,
        )
        return Verdict(
            promotes=promotes,
            why=why,
            rows=(row,),
            values={role: number for role, number in by_role.items() if number is not None and math.isfinite(number)},
            facts=facts,
        )


def _metric(registry: HoldsModels, version: ModelVersion, metric: str) -> float:
    metrics = registry.metrics(version)
    if metric not in metrics:
        raise ModelVersionError(
            f"version {version.version} of {version.name!r} has no metric {metric!r}; run {version.run_id} has "
            f"{', '.join(sorted(metrics)) or 'none'}. Log it in the training function, or promote on one that is there."
        )
    return float(metrics[metric])
