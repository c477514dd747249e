"""What a step about a version reads upstream: the version that a training asset made last, and rows."""

import dagster as dg

from dagster_mlops.core.asset_records import upstream_records
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.provenance import Dataset, ModelVersion


def made_by(context: dg.AssetExecutionContext, asset: dg.AssetKey, name: str = "") -> ModelVersion:
    """The version that an upstream asset made last; of the registered model `name`, if that is given.

    Raises:
        ModelVersionError: it has made none.
    """
    records = upstream_records(context)
    makers = ("", asset.to_user_string())  # who made a version that was reported by hand need not be known
    versions = [
        record
        for record in records
        if isinstance(record, ModelVersion) and (record.name == name if name else record.dagster_asset in makers)
    ]
    if not versions:
        kinds = ", ".join(sorted({record.role for record in records})) or "no record"
        raise ModelVersionError(
            f"{context.assets_def.key.to_user_string()} found no version{f' of {name!r}' if name else ''} on "
            f"{asset.to_user_string()}; there is {kinds}. Materialize a training_asset"
            f"{f' with registered_model_name={name!r}' if name else ''} there first."
        )
    return versions[-1]


def content_hashes(context: dg.AssetExecutionContext, rows: dg.AssetKey) -> list[str]:
    """The content hashes on record of the dataset that an upstream asset is, one for each partition that is read."""
    records = [record for record in upstream_records(context) if isinstance(record, Dataset)]
    return [record.md5 for record in records if record.dagster_asset == rows.to_user_string()]
