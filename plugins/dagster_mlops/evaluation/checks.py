"""Asset checks on an evaluation: bounds on metrics and slices, and how far they may fall behind the champion."""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.asset_records import partition_checked
from dagster_mlops.core.bounds import Range, ranges, refuse_useless, within
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.metadata import table

if TYPE_CHECKING:
    from dagster_mlops.evaluation.measure import Estimate, Evaluation, Part

Bounds = Mapping[str, Range | float]
_MORE_IS_BETTER = {"accuracy", "auc", "average_precision", "f1", "macro_f1", "precision", "r2", "recall", "roc_auc"}
_LESS_IS_BETTER = {"brier", "log_loss", "mae", "mape", "mse", "rmse"}
Decides = Literal["interval", "value"]
# The verdict on a part of the rows, and a sentence about it.
_Judge = Callable[["Evaluation", "Part"], tuple[bool, str]]


def evaluation_checks(
    *,
    evaluation: AssetLike,
    bounds: Bounds | None = None,
    slice_bounds: Bounds | None = None,
    max_drop: Mapping[str, float] | None = None,
    slice_max_drop: Mapping[str, float] | None = None,
    decides: Decides = "interval",
    blocking: bool = True,
    **check_options: Any,
) -> list[dg.AssetChecksDefinition]:
    """Asset checks on the result of an :func:`evaluation_asset`, in a single step and without asking the registry.

        checks = evaluation_checks(
            evaluation=evaluation, bounds={"auc": (0.7, None)}, slice_bounds={"auc": (0.6, None)},
            max_drop={"auc": 0.0}, slice_max_drop={"auc": 0.03},
        )

    With ``decides="interval"`` a check fails if the whole confidence interval is out of bounds, so that chance in a
    small slice does not fail it. With ``"value"`` the metric itself decides. Slices with too few rows are not judged.

    A drop that cannot be judged because the champion cannot answer these rows is a failed check; without a champion
    there is nothing to fall behind. Promotion with ``evaluation=`` refuses to go on while a blocking check fails.

    Args:
        bounds: (least, greatest) acceptable value by metric, on all rows; checks ``metric_<name>``. A number alone is
            the least, and the greatest for losses and errors (``log_loss``, ``rmse``, …).
        slice_bounds: The same for each slice; checks ``slices_<name>``.
        max_drop: How much worse than the champion a metric may be, on the same rows; checks ``drop_<name>``.
        slice_max_drop: The same for each slice; checks ``slices_drop_<name>``.
        check_options: Further options of :func:`dagster.asset_check`.
    """
    key = asset_key(evaluation)
    judges: dict[str, tuple[str, Callable[[Evaluation], dg.AssetCheckResult]]] = {}

    def add(name: str, description: str, by_slice: bool, judge: _Judge) -> None:
        judges[re.sub(r"\W", "_", name)] = description, partial(_result, by_slice, judge)

    what = f"evaluation_checks of {key.to_user_string()}"
    for by_slice, by_metric in ((False, bounds or {}), (True, slice_bounds or {})):
        for metric, (low, high) in ranges(what, by_metric, direction).items():
            description = f"{metric} {'of each slice ' * by_slice}is {within(low, high)}."
            name = f"{'slices' if by_slice else 'metric'}_{metric}"
            add(name, description, by_slice, partial(_bounds, metric, low, high, decides))
    for by_slice, drops in ((False, max_drop or {}), (True, slice_max_drop or {})):
        for metric, allowed in drops.items():
            refuse_useless(what, {f"the largest drop of {metric!r} is {allowed}, below 0": allowed < 0})
            subject = f"{metric} {'of no slice' if by_slice else 'not'}"
            description = f"{subject} worse than the champion's by more than {allowed:g}."
            add(f"{'slices_' * by_slice}drop_{metric}", description, by_slice, partial(_drop, metric, allowed, decides))
    if not judges:
        raise dg.DagsterInvalidDefinitionError(
            f"{what} needs at least one of bounds, slice_bounds, max_drop and slice_max_drop."
        )

    def evidence(context: dg.AssetCheckExecutionContext) -> "Evaluation":
        from dagster_mlops.evaluation.ui_metadata import latest_evaluation  # for steps, not for code locations

        return latest_evaluation(context, key, partition_checked(context, key))

    checks = asset_checks(
        asset=key,
        tool="evaluation",
        judges=judges,
        evidence=evidence,
        blocking=blocking,
        name="_".join([*key.path, "evaluation_checks"]),
        options=check_options,
    )
    return [checks]


def direction(metric: str) -> bool | None:
    """True if more of a metric is better, None for a metric that only its user knows.

    >>> direction("auc"), direction("log_loss"), direction("cost")
    (True, False, None)
    """
    return True if metric in _MORE_IS_BETTER else False if metric in _LESS_IS_BETTER else None


def _result(by_slice: bool, judge: _Judge, evaluation: "Evaluation") -> dg.AssetCheckResult:
    parts = evaluation.slices if by_slice else (evaluation.whole,)
    verdicts = {part.name: judge(evaluation, part) for part in parts if not by_slice or not part.why_not}
    problems = {name: text for name, (passed, text) in verdicts.items() if not passed}
    if not by_slice:
        description = verdicts[evaluation.whole.name][1]
    elif verdicts:
        description = "; ".join(f"{name}: {text}" for name, text in problems.items())
        description = description[:1000] or f"All {len(verdicts)} slices judged."
    else:
        description = f"None of {len(parts)} slices has enough rows to be judged."
    counts = {"judged": len(verdicts), "not_judged": len(parts) - len(verdicts)}
    rows = [{"slice": name, "problem": text} for name, text in problems.items()]
    return dg.AssetCheckResult(
        passed=bool(verdicts) and not problems,
        description=description,
        metadata={
            "version": f"{evaluation.model}/{evaluation.version}",
            **({**counts, **table("problems", rows)} if by_slice else {}),
        },
    )


def _bounds(
    metric: str, low: float | None, high: float | None, decides: Decides, _: "Evaluation", part: "Part"
) -> tuple[bool, str]:
    estimate = part.metrics.get(metric)
    if estimate is None:
        return False, part.why_not or f"there is no {metric}; there are {', '.join(part.metrics) or 'none'}"
    least, greatest = _range(estimate, decides)
    passed = greatest >= (-math.inf if low is None else low) and least <= (math.inf if high is None else high)
    return passed, f"{metric} {_text(estimate)} is {'' if passed else 'not '}{within(low, high)}"


def _drop(metric: str, allowed: float, decides: Decides, evaluation: "Evaluation", part: "Part") -> tuple[bool, str]:
    difference = part.differences.get(metric)
    if difference is None:
        if part.differences:
            return False, f"the versions are not compared by {metric}, only by {', '.join(part.differences)}"
        # Without a champion there is nothing to fall behind; one that cannot be scored may be better.
        why = part.why_not or evaluation.no_rival or "the evaluation compares with no version"
        return not (part.why_not or evaluation.rival_version), why
    least, greatest = _range(difference, decides)
    # The smallest loss that the interval leaves open.
    loss = least if metric in evaluation.lower_is_better else -greatest
    text = f"{metric} is {_text(difference, '+.4g')} against {evaluation.alias} {evaluation.rival_version}"
    return (True, text) if loss <= allowed else (False, f"{text}, worse by more than {allowed:g}")


def _range(estimate: "Estimate", decides: Decides) -> tuple[float, float]:
    if decides == "value" or estimate.low is None or estimate.high is None:
        return estimate.value, estimate.value
    return estimate.low, estimate.high


def _text(estimate: "Estimate", spec: str = ".4g") -> str:
    low, high = estimate.low, estimate.high
    interval = "" if low is None or high is None else f" [{low:{spec}}, {high:{spec}}]"
    return f"{estimate.value:{spec}}{interval}"
