"""Asset checks run for real on frames: an asset for each frame, then the checks."""

from collections.abc import Mapping
from typing import Any

import dagster as dg


def evaluated(
    frames: Mapping[str, object], *checks: dg.AssetsDefinition, **resources: Any
) -> dict[str, dg.AssetCheckEvaluation]:
    """The evaluations by name of the check; frames are kept in ``frames/`` of the current folder."""

    def an_asset(name: str, frame: object) -> dg.AssetsDefinition:
        @dg.asset(name=name)
        def value() -> Any:
            return frame

        return value

    result = dg.materialize(
        [*(an_asset(*item) for item in frames.items()), *checks],
        resources={"io_manager": dg.FilesystemIOManager(base_dir="frames"), **resources},
        raise_on_error=False,
    )
    return {e.check_name: e for e in result.get_asset_check_evaluations()}


def facts(evaluation: dg.AssetCheckEvaluation) -> dict[str, Any]:
    """The metadata of an evaluation as plain values."""
    return {key: value.value for key, value in evaluation.metadata.items()}
