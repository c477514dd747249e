"""Data quality, drift and performance as asset checks on any dataframe-like asset."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from dagster_mlops import monitoring
from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.evidently.preset import useless_preset


def drift_check(
    *, asset: AssetLike, reference: AssetLike, preset: Mapping[str, Any] | None = None, **options: Any
) -> dg.AssetChecksDefinition:
    """Compare an asset with a reference; fails when enough columns drifted, one drifted far, or one is broken.

        drift_check(
            asset="predictions",
            reference="training_set",
            columns=["temp", "wind_speed", "carrier"],
            preset={"per_column_method": {"temp": "wasserstein"}, "per_column_threshold": {"temp": 0.3}},
        )

    Args:
        preset: Options of Evidently's ``DataDriftPreset`` over the defaults here (PSI ≥ 0.2 for numbers, Jensen-Shannon
            distance ≥ 0.1 for categories).
        options: Those of :func:`dagster_mlops.monitoring.drift_check`: `columns`, `drift_share`, `min_rows`, ….

    Raises:
        DagsterInvalidDefinitionError: an option or method that Evidently does not have, or one without effect.
    """
    what = f"drift_check of {asset_key(asset).to_user_string()}"
    refuse_useless(what, useless_preset(preset or {}, options.get("columns")))
    return monitoring.drift_check(asset=asset, reference=reference, options=preset, tool="evidently", **options)


def data_quality_check(
    *, asset: AssetLike, reference: AssetLike | None = None, **options: Any
) -> dg.AssetChecksDefinition:
    """Check one dataframe as it came, with Evidently's summary of it as the report.

        data_quality_check(
            asset="raw_weather",
            columns=["origin", "time_hour", "temp"],
            max_missing_share={"temp": 0.05},
            ranges={"temp": (-30, 120)},
            no_duplicates_of=["origin", "time_hour"],
            blocking=True,
        )

    All rows are counted; only the HTML report is made of a sample.

    Args:
        reference: Asset that was good: what its columns have in common is expected.
        options: Those of :func:`dagster_mlops.monitoring.data_quality_check`, which needs no Evidently: `columns`,
            `types`, `ranges`, `categories`, `at_least`, `no_duplicates_of`, `time`, `max_age`, ….
    """
    return monitoring.data_quality_check(asset=asset, reference=reference, **{"tool": "evidently", **options})


def performance_check(
    *,
    asset: AssetLike,
    target: str,
    prediction: str,
    labels: AssetLike | None = None,
    reference: AssetLike | None = None,
    **options: Any,
) -> dg.AssetChecksDefinition:
    """Measure predictions against the labels that have arrived so far, with Evidently's report on them.

        performance_check(
            asset="predictions", target="late", prediction="probability", labels="arrivals", key="flight_id",
            bounds={"roc_auc": 0.65}, reference="validation_predictions", max_drop=0.05,
        )

    Args:
        target: Column of the labels: true/false or 1/0 for classification, a number for regression.
        prediction: Column of the predictions: the probability of 1 for classification, a number for regression.
        labels: Asset that holds `target`, joined by column `key`; by default `target` is a column of `asset`.
        reference: Asset with both columns that metrics are compared with.
        options: Those of :func:`dagster_mlops.monitoring.performance_check`, which needs no Evidently: `bounds`,
            `max_drop`, `metrics`, `key`, `segment`, `false_alarm_rate`, ….
    """
    assets = {"asset": asset, "labels": labels, "reference": reference}
    return monitoring.performance_check(
        target=target, prediction=prediction, **{"tool": "evidently", **assets, **options}
    )
