"""A bento that serves on this machine: the serving verbs with BentoML as the packaging tool."""

from pathlib import Path
from typing import Any

import dagster as dg

from dagster_mlops import serving
from dagster_mlops.core.asset_keys import AssetLike


def deployment_asset(
    *,
    bento: AssetLike,
    golden_set: AssetLike | dg.AssetIn,
    state_dir: str | Path,
    port: int = 8300,
    resource_key: str = "bentoml",
    **options: Any,
) -> dg.AssetsDefinition:
    """An asset that serves the bento which the asset `bento` recorded, behind Envoy on ``127.0.0.1:port``.

        deployment = deployment_asset(bento="bento", golden_set="training_set", state_dir="state/serving")

    Args:
        bento: A :func:`bento_asset`.
        golden_set, state_dir, options: As of :func:`dagster_mlops.serving.deployment_asset`, and anything else that
            :func:`dagster.asset` takes.
    """
    return serving.deployment_asset(
        package=bento,
        golden_set=golden_set,
        state_dir=state_dir,
        port=port,
        resource_key=resource_key,
        **{**options, "kinds": {"bentoml", *options.get("kinds", ())}},
    )


def deployment_health_check(
    *, asset: AssetLike, resource_key: str = "bentoml", **options: Any
) -> dg.AssetChecksDefinition:
    """A check of the deployment that `asset` (a ``deployment_asset``) made.

    Options are those of :func:`dagster_mlops.serving.deployment_health_check`.

        checks = [deployment_health_check(asset=deployment)]
    """
    return serving.deployment_health_check(asset=asset, resource_key=resource_key, **options)
