"""Drift as an asset check, measured by river."""

from typing import Any

import dagster as dg

from dagster_mlops import monitoring
from dagster_mlops.core.asset_keys import AssetLike


def drift_check(*, asset: AssetLike, reference: AssetLike, **options: Any) -> dg.AssetChecksDefinition:
    """Compare an asset, row by row in its order, with a reference asset.

        drift_check(asset="predictions", reference="training_set", columns=["temp", "carrier"])

    Args:
        options: Those of :func:`dagster_mlops.monitoring.drift_check`; its `options` are the arguments of river's
            ``ADWIN``, and ``number_shift`` and ``share_shift``: the smallest shift that counts as drift.
    """
    return monitoring.drift_check(asset=asset, reference=reference, tool="river", **options)
