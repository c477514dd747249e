"""Gates on training sets: fit to train on."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from dagster_mlops._extras import extra
from dagster_mlops.errors import FeatureError

if TYPE_CHECKING:
    import pandas as pd


def training_set_checks(
    *,
    asset: dg.AssetKey | dg.AssetsDefinition | str,
    max_null_share: float | Mapping[str, float] = 0.5,
    unique: Sequence[str] = (),
    blocking: bool = True,
) -> list[dg.AssetChecksDefinition]:
    """Checks on a training set: no column is missing too often, and no row is there twice.

        training_set_checks(asset="training_set", max_null_share={"wind_speed": 0.05}, unique=["flight_id"])

    Args:
        max_null_share: Largest allowed share of missing values, for every column or by column.
        unique: Columns that together name a row; without any, there is no check of duplicates.
    """
    key = asset.key if isinstance(asset, dg.AssetsDefinition) else dg.AssetKey.from_coercible(asset)

    @dg.asset_check(asset=asset, name="null_shares", blocking=blocking, description="No column is missing too often.")
    def null_shares(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        def judge() -> dg.AssetCheckResult:
            frame = _load(context, key)
            bounds = max_null_share if isinstance(max_null_share, Mapping) else dict.fromkeys(frame, max_null_share)
            _require(frame, list(bounds), key)
            shares = {column: float(frame[column].isna().mean()) if len(frame) else 1.0 for column in bounds}
            over = {column: share for column, share in shares.items() if share > bounds[column]}
            return dg.AssetCheckResult(
                passed=not over,
                description=_named("too often missing", over),
                metadata={f"feast/null_share/{column}": share for column, share in shares.items()},
            )

        return never_missing(judge)

    @dg.asset_check(asset=asset, name="no_duplicates", blocking=blocking, description=f"{', '.join(unique)} is unique.")
    def no_duplicates(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        def judge() -> dg.AssetCheckResult:
            frame = _load(context, key)
            _require(frame, list(unique), key)
            repeated = int(frame.duplicated(list(unique)).sum())
            return dg.AssetCheckResult(
                passed=repeated == 0, metadata={"feast/duplicates": repeated, "feast/rows": len(frame)}
            )

        return never_missing(judge)

    return [null_shares, no_duplicates] if unique else [null_shares]


def never_missing(judge: Callable[[], dg.AssetCheckResult]) -> dg.AssetCheckResult:
    """A check that breaks has failed; a result that is merely missing would block nothing."""
    try:
        return judge()
    except Exception as error:  # noqa: BLE001 - whatever broke, the gate does not hold
        return dg.AssetCheckResult(
            passed=False,
            description=f"The check itself broke: {error}",
            metadata={"feast/error": f"{type(error).__name__}: {error}"},
        )


def _load(context: dg.AssetCheckExecutionContext, key: dg.AssetKey) -> "pd.DataFrame":
    partition = context.partition_key if context.has_partition_key else None
    frame = context.op_execution_context.load_asset_value(key, partition_key=partition)
    if not isinstance(frame, extra("pandas", extra="feast").DataFrame):
        raise FeatureError(
            f"{key.to_user_string()} is a {type(frame).__name__}, and these checks take a pandas DataFrame."
        )
    return frame


def _require(frame: "pd.DataFrame", columns: list[str], key: dg.AssetKey) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise FeatureError(
            f"{key.to_user_string()} has no columns {', '.join(missing)} (it has: {', '.join(frame.columns)})."
        )


def _named(problem: str, columns: Mapping[str, float]) -> str | None:
    return f"{problem}: " + ", ".join(f"{c} ({share:.1%})" for c, share in columns.items()) if columns else None
