"""A rollout as Dagster shows it: a check's result with numbers, a table and a picture of the evidence."""

import itertools
import math
from functools import partial
from typing import Any

import dagster as dg

from dagster_mlops.core.metadata import table
from dagster_mlops.core.pictures import Figure, drawn, gallery, new_figure
from dagster_mlops.serving.rollout_verdict.rollout import BACK, GO, Rollout

_AGAINST, _IN_FAVOUR = "#d9480f", "#2b8a3e"


def rollout_check_result(*, rollout: Rollout, check_name: str | None = None) -> dg.AssetCheckResult:
    """The latest verdict of a rollout as the result of an asset check.

    It passes if the verdict is ``go``; ``not yet`` is a warning. Numbers are floats, which Dagster plots over time.

    Raises:
        ValueError: the rollout has not looked at anything.
    """
    verdict = rollout.verdict
    if verdict is None:
        raise ValueError("The rollout has no verdict yet. Give it a batch first: rollout.look(batch).")
    figures = gallery([drawn("Evidence", partial(_figure, rollout), tool="mlflow")])
    return dg.AssetCheckResult(
        check_name=check_name,
        passed=verdict.value == GO,
        severity=dg.AssetCheckSeverity.ERROR if verdict.value == BACK else dg.AssetCheckSeverity.WARN,
        description=f"{verdict.value}: {verdict.reason}",
        metadata={
            "rollout/verdict": verdict.value,
            "rollout/share": verdict.share,
            **({"rollout/figure": figures} if figures else {}),
            **table("rollout/evidence", [_rounded(vars(part)) for part in verdict.parts]),
            "rollout/requests": float(verdict.requests),
            "rollout/requests_needed": float(verdict.requests_needed),
            "rollout/seconds": rollout.seconds,
            "rollout/error_rate": rollout.options.error_rate,
            "rollout/e_value": verdict.against,
            **{
                f"rollout/{part.kind}/{arm}": value
                for part in verdict.parts
                for arm, value in (("canary", part.canary), ("baseline", part.baseline))
                if math.isfinite(value)
            },
        },
    )


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in row.items()}


def _figure(rollout: Rollout) -> "Figure | None":
    looks = rollout.history
    figure = new_figure(6.4, 3.2, tool="mlflow")
    axes = figure.subplots()
    requests = [look.requests for look in looks]
    for values, threshold, colour, name in (
        ([look.against for look in looks], rollout.options.error_rate, _AGAINST, "worse"),
        ([look.in_favour for look in looks], rollout.options.miss_rate, _IN_FAVOUR, "without the harm"),
    ):
        axes.plot(requests, [_magnitude(value) for value in values], color=colour, label=name)
        axes.axhline(-math.log10(threshold), color=colour, linestyle="--", linewidth=0.8)
    for before, after in itertools.pairwise(looks):
        if after.share != before.share:
            axes.axvline(before.requests, color="#9aa5b1", linewidth=0.8)
            axes.annotate(f"{after.share:.0%}", (before.requests, 1), xycoords=("data", "axes fraction"), fontsize=7)
    axes.set_xlabel("requests to the canary", fontsize=8)
    axes.set_ylabel("e-value, power of ten", fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="lower left")
    return figure


def _magnitude(value: float) -> float:
    return min(max(math.log10(max(value, 1e-6)), -4.0), 6.0)
