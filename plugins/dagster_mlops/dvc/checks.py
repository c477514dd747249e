"""Checks on datasets: the remote has what the pointers name, and there are enough rows."""

from collections.abc import Iterator

import dagster as dg

from dagster_mlops.asset_records import latest_records
from dagster_mlops.dvc import versions
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.provenance import Dataset


def dataset_checks(
    *, asset: dg.AssetsDefinition | dg.AssetKey | str, min_rows: int = 1, blocking: bool = True
) -> list[dg.AssetChecksDefinition]:
    """Two checks on a dataset asset, over all of its partitions. They need the resource ``dvc``.

    ``remote_has_object``: the remote holds the content of the latest version, and in the size that was stored.
    ``row_count``: each partition has at least `min_rows` rows.

        dg.Definitions(assets=[flights], asset_checks=dataset_checks(asset=flights, min_rows=20_000))
    """
    key = dg.AssetKey.from_user_string(asset) if isinstance(asset, str) else asset
    key = key.key if isinstance(key, dg.AssetsDefinition) else key

    @dg.asset_check(asset=key, blocking=blocking, required_resource_keys={"dvc"})
    def remote_has_object(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        """The remote holds the content of the latest version, in the size that was stored."""
        dvc: DvcResource = context.resources.dvc
        datasets = list(_datasets(context.instance, key))
        try:
            with dvc.open(locked=False) as repo:
                odb = repo.cloud.get_remote_odb(dvc.remote, "status")
                missing = [d for d in datasets if not versions.remote_has(odb, repo, d.md5, d.bytes)]
                remote = versions.remote_url(repo, dvc.remote)
        except Exception as error:  # noqa: BLE001 (a remote that cannot be asked is a failed check, not a missing one)
            return dg.AssetCheckResult(passed=False, description=f"The remote of {dvc.root} cannot be asked: {error}")
        return _verdict(datasets, missing, f"is not in {remote}: push it (`dvc push --all-commits`)")

    @dg.asset_check(asset=key, blocking=blocking)
    def row_count(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        """Each partition has enough rows."""
        datasets = list(_datasets(context.instance, key))
        short = [d for d in datasets if (d.rows or 0) < min_rows]
        return _verdict(datasets, short, f"has fewer than {min_rows} rows")

    return [remote_has_object, row_count]


def _datasets(instance: dg.DagsterInstance, key: dg.AssetKey) -> Iterator[Dataset]:
    partitions = sorted(instance.get_materialized_partitions(key))
    for record in latest_records(instance, key, partitions or None):
        if isinstance(record, Dataset):
            yield record


def _verdict(datasets: list[Dataset], broken: list[Dataset], problem: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=bool(datasets) and not broken,
        description="; ".join(f"{d.path} {problem}" for d in broken[:5])
        or (None if datasets else "No dataset is known yet: materialize the asset."),
        metadata={
            "versions": len(datasets),
            "broken": len(broken),
            "rows": sum(d.rows or 0 for d in datasets),
            "bytes": sum(d.bytes or 0 for d in datasets),
        },
    )
