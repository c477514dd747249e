"""Asset checks on an evaluation: bounds on metrics and slices, and how far they may fall behind the champion."""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.asset_records import partition_checked
from dagster_mlops.core.bounds import refuse_useless, within
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.evaluation.measure import Estimate, Evaluation, Part
from dagster_mlops.evaluation.ui_metadata import latest_evaluation

Bounds = Mapping[str, tuple[float | None, float | None]]
Decides = Literal["interval", "value"]
# Whether some of the rows fulfil it, and what is so.
_Judge = Callable[[Evaluation, Part], tuple[bool, str]]


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
    """Asset checks on what an :func:`evaluation_asset` found, in a single step and without asking the registry.

        checks = evaluation_checks(
            evaluation=evaluation, bounds={"auc": (0.7, None)}, slice_bounds={"auc": (0.6, None)},
            max_drop={"auc": 0.0}, slice_max_drop={"auc": 0.03},
        )

    With ``decides="interval"`` a check fails where the whole confidence interval is out of bounds: chance in a small
    slice is no failure. With ``"value"`` the metric itself decides. Slices with too few rows are not judged.

    Of the drops, one that cannot be judged because the champion cannot answer these rows is a failed check; without a
    champion there is nothing to fall behind. Promotion with ``evaluation=`` refuses to go on while a blocking check
    fails.

    Args:
        bounds: (least, greatest) acceptable value by metric, on all rows; checks ``metric_<name>``.
        slice_bounds: the same for each slice; checks ``slices_<name>``.
        max_drop: how much worse than the champion a metric may be, on the same rows; checks ``drop_<name>``.
        slice_max_drop: the same for each slice; checks ``slices_drop_<name>``.
        check_options: Whatever else :func:`dagster.asset_check` takes.
    """
    key = asset_key(evaluation)
    for given in (bounds or {}, slice_bounds or {}):
        refuse_useless(given)
    asked: dict[str, tuple[str, bool, _Judge]] = {}
    for by_slice, given in ((False, bounds), (True, slice_bounds)):
        for metric, (low, high) in (given or {}).items():
            name = f"{'slices' if by_slice else 'metric'}_{metric}"
            told = f"{metric} {'of each slice ' * by_slice}is {within(low, high)}."
            asked[re.sub(r"\W", "_", name)] = told, by_slice, _bounds(metric, low, high, decides)
    for by_slice, given in ((False, max_drop), (True, slice_max_drop)):
        for metric, allowed in (given or {}).items():
            name = f"{'slices_' * by_slice}drop_{metric}"
            told = (
                f"{metric} {'of no slice ' if by_slice else 'not '}worse than the champion's by more than {allowed:g}."
            )
            asked[re.sub(r"\W", "_", name)] = told, by_slice, _drop(metric, allowed, decides)
    if not asked:
        raise dg.DagsterInvalidDefinitionError(
            f"evaluation_checks of {key.to_user_string()} needs at least one of bounds, slice_bounds, max_drop and "
            "slice_max_drop."
        )
    return [
        asset_checks(
            asset=key,
            tool="evaluation",
            judges={
                name: (description, functools.partial(_result, by_slice, judge))
                for name, (description, by_slice, judge) in asked.items()
            },
            evidence=lambda context: latest_evaluation(context.instance, key, partition_checked(context, key)),
            blocking=blocking,
            name="_".join([*key.path, "evaluation_checks"]),
            options=check_options,
        )
    ]


def _result(by_slice: bool, judge: _Judge, evaluation: Evaluation) -> dg.AssetCheckResult:
    parts = evaluation.slices if by_slice else (evaluation.whole,)
    judged = [part for part in parts if not by_slice or not part.why_not]
    verdicts = {part.name: judge(evaluation, part) for part in judged}
    problems = {where: told for where, (fine, told) in verdicts.items() if not fine}
    said = (
        [f"{where}: {told}" for where, told in problems.items()]
        if by_slice
        else [told for _, told in verdicts.values()]
    )
    nothing = f"None of {len(parts)} slices has enough rows to be judged."
    passed = bool(judged) and not problems
    table = [dg.TableRecord({"slice": where, "problem": told}) for where, told in problems.items()]
    return dg.AssetCheckResult(
        passed=passed,
        description="; ".join(said)[:1000] or (f"All {len(judged)} slices judged." if judged else nothing),
        metadata={
            "version": f"{evaluation.model}/{evaluation.version}",
            **({"judged": len(judged), "not_judged": len(parts) - len(judged)} if by_slice else {}),
            **({"problems": dg.MetadataValue.table(table)} if by_slice and table else {}),
        },
    )


def _bounds(metric: str, low: float | None, high: float | None, decides: Decides) -> _Judge:
    def judge(evaluation: Evaluation, part: Part) -> tuple[bool, str]:
        found = part.metrics.get(metric)
        if found is None:
            return False, part.why_not or f"there is no {metric}; there are {', '.join(part.metrics) or 'none'}"
        least, greatest = _range(found, decides)
        fine = greatest >= (-math.inf if low is None else low) and least <= (math.inf if high is None else high)
        return fine, f"{metric} {_told(found)} is {'' if fine else 'not '}{within(low, high)}"

    return judge


def _drop(metric: str, allowed: float, decides: Decides) -> _Judge:
    def judge(evaluation: Evaluation, part: Part) -> tuple[bool, str]:
        found = part.differences.get(metric)
        if found is None:
            if part.differences:
                return False, f"there is no comparison by {metric}; there are {', '.join(part.differences)}"
            # Without a champion there is nothing to fall behind; one that cannot be scored may be better.
            why = part.why_not or evaluation.no_rival or "the evaluation compares with no version"
            return not (part.why_not or evaluation.rival_version), why
        least, greatest = _range(found, decides)
        # In the best case for the version that the interval leaves open.
        lost = least if metric in evaluation.lower_is_better else -greatest
        told = f"{metric} is {_told(found, '+.4g')} against {evaluation.alias} {evaluation.rival_version}"
        return (True, told) if lost <= allowed else (False, f"{told}, worse by more than {allowed:g}")

    return judge


def _range(found: Estimate, decides: Decides) -> tuple[float, float]:
    if decides == "value" or found.low is None or found.high is None:
        return found.value, found.value
    return found.low, found.high


def _told(found: Estimate, how: str = ".4g") -> str:
    interval = "" if found.low is None or found.high is None else f" [{found.low:{how}}, {found.high:{how}}]"
    return f"{found.value:{how}}{interval}"
