"""Asset checks on the metrics of a training asset's latest model version."""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.asset_records import latest, partition_checked
from dagster_mlops.core.bounds import Range, as_logged, ranges, within
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.evaluation.checks import direction
from dagster_mlops.provenance import ModelVersion


def metric_checks(
    *,
    asset: AssetLike,
    bounds: Mapping[str, Range | float],
    blocking: bool = True,
    **check_options: Any,
) -> list[dg.AssetChecksDefinition]:
    """One asset check per metric, all in one step: it passes when the metric is within its bounds, ends included.

        checks = metric_checks(asset=arrival_delay_model, bounds={"auc": 0.7, "log_loss": 0.5, "share": (0.2, 0.4)})
        dg.Definitions(asset_checks=[*checks], ...)

    A number alone is the least acceptable value, and the greatest for losses and errors (``log_loss``, ``rmse``, …).

    The checks are named ``metric_<name>``. They read the version's record, so they need no connection to MLflow. A
    metric that is missing or not finite fails its check; the result is never missing. With ``blocking``, promotion and
    every other guarded asset refuse to go on while one of them fails. Everything else that :func:`dagster.asset_check`
    takes is passed on.
    """
    key = asset_key(asset)
    names = {metric: "metric_" + re.sub(r"\W", "_", metric) for metric in bounds}
    if not names or len(set(names.values())) < len(names):
        raise dg.DagsterInvalidDefinitionError(
            f"metric_checks of {key.to_user_string()} needs bounds for at least one metric, and names that differ in "
            f"more than punctuation; it got {', '.join(names) or 'none'}."
        )
    within_ranges = ranges(f"metric_checks of {key.to_user_string()}", bounds, direction)
    checks = asset_checks(
        asset=key,
        tool="mlflow",
        judges={
            names[metric]: (f"{metric} is {within(*span)}.", functools.partial(_result, metric, span))
            for metric, span in within_ranges.items()
        },
        evidence=lambda context: _latest_version(context, key),
        blocking=blocking,
        name="_".join([*key.path, "metric_checks"]),
        options=check_options,
    )
    return [checks]


def _latest_version(context: dg.AssetCheckExecutionContext, key: dg.AssetKey) -> ModelVersion:
    partition = partition_checked(context, key)
    return latest(
        context, key, ModelVersion, partition=partition, error=ModelVersionError, hint="Materialize it first."
    )


def _result(metric: str, bounds: Range, version: ModelVersion) -> dg.AssetCheckResult:
    value = as_logged(version.metrics.get(metric, math.nan))
    if not math.isfinite(value):
        names = ", ".join(sorted(version.metrics)) or "none"
        description = f"version {version.version} of {version.name!r} has no finite metric {metric!r}; it has {names}."
        return dg.AssetCheckResult(passed=False, description=description, metadata={"version": version.version})
    low, high = (-math.inf if bounds[0] is None else bounds[0]), (math.inf if bounds[1] is None else bounds[1])
    passed = low <= value <= high
    facts = {"value": value, "least": bounds[0], "greatest": bounds[1], "version": version.version}
    return dg.AssetCheckResult(
        passed=passed,
        description=f"{metric} {value:.6g} is {'' if passed else 'not '}{within(*bounds)}.",
        metadata={name: number for name, number in facts.items() if number is not None},
    )
