"""Checks on datasets: the content is in place and intact, no column was lost, and there are enough rows."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, get_args

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.asset_records import latest_event, latest_records
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.failures import raised_as
from dagster_mlops.dvc.lazy import Repo
from dagster_mlops.dvc.metadata_keys import COLUMNS_CHANGED, ROWS_DELTA
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.store import objects, pointers
from dagster_mlops.dvc.store.contents import Content, content_of, remote_has
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Dataset, records_in

DatasetCheck = Literal[
    "remote_has_object", "row_count", "no_column_lost", "row_count_within", "cache_intact", "pointer_matches_data"
]
# The metadata of the materialization that stored a version; None if it was only observed.
_Stored = Mapping[str, Any] | None
_ONLY_OBSERVED = "was only observed: what changed is known where it is stored"


def dataset_checks(
    *,
    asset: AssetLike,
    checks: Iterable[DatasetCheck] = ("remote_has_object", "row_count"),
    min_rows: int = 1,
    min_ratio: float = 0.5,
    max_ratio: float = 2.0,
    blocking: bool = True,
    **check_options: Any,
) -> list[dg.AssetChecksDefinition]:
    """Checks on the latest versions of a dataset asset, over all of its partitions.

    ``remote_has_object``: the remote holds the content, in the size that was stored.
    ``row_count``: there are at least `min_rows` rows.
    ``no_column_lost``: every column of the previous version is there, in the same type. Re-running with the same bytes
    does not make a loss go away.
    ``row_count_within``: the rows are between `min_ratio` and `max_ratio` times those of the previous version.
    ``cache_intact``: each file in DVC's cache still hashes to its name; reads all of it.
    ``pointer_matches_data``: git's pointer names the version on Dagster's record, and the data on disk is that one.

        dataset_checks(asset=flights, checks=["row_count", "no_column_lost"], min_rows=20_000)

    A check that cannot be evaluated fails. All but the three about rows and columns need the resource ``dvc``.

    Args:
        asset: Dataset asset.
        checks: Names of the checks, in this order.
        min_rows: Smallest number of rows in each partition.
        min_ratio: Smallest share of the rows of the previous version; a first version passes.
        max_ratio: Largest share of them.
        blocking: Whether a failure stops downstream assets of the same run.
        check_options: Whatever else :func:`dagster.asset_check` takes.

    Raises:
        DatasetError: a name in `checks` is none of these.
    """
    key = asset_key(asset)

    def row_count(dataset: Dataset, stored: _Stored) -> str:
        """Each partition has enough rows."""
        return f"has fewer than {min_rows} rows" if (dataset.rows or 0) < min_rows else ""

    def row_count_within(dataset: Dataset, stored: _Stored) -> str:
        """The number of rows is in proportion to that of the previous version."""
        if stored is None:
            return _ONLY_OBSERVED
        delta = stored.get(ROWS_DELTA)
        if delta is None or dataset.rows is None:
            return ""
        before = dataset.rows - delta.value
        if min_ratio * before <= dataset.rows <= max_ratio * before:
            return ""
        return f"has {dataset.rows} rows after {before}, which is not {min_ratio:g} to {max_ratio:g} times as many"

    # By name, the functions that find a problem in a version, from records here, in the repository below. The docstring
    # of each describes its check.
    of_records = {"row_count": row_count, "no_column_lost": _no_column_lost, "row_count_within": row_count_within}
    judges = {**of_records, **_IN_REPOSITORY}

    def judge(name: str, context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        versions = list(_versions(context.instance, key))
        if name in of_records:
            problems = {dataset.path: of_records[name](dataset, stored) for dataset, stored in versions}
        else:
            dvc: DvcResource = context.resources.dvc
            with dvc.open(locked=False) as repo:
                problems = {dataset.path: _IN_REPOSITORY[name](dataset, dvc, repo) for dataset, _ in versions}
        broken = [f"{path} {problem}" for path, problem in problems.items() if problem]
        return dg.AssetCheckResult(
            passed=bool(versions) and not broken,
            description="; ".join(broken[:5])
            or (None if versions else "There is no dataset yet: materialize the asset."),
            metadata={
                "versions": len(versions),
                "broken": len(broken),
                "rows": sum(dataset.rows or 0 for dataset, _ in versions),
                "bytes": sum(dataset.bytes or 0 for dataset, _ in versions),
            },
        )

    checks = list(checks)
    if unknown := [name for name in checks if name not in judges]:
        raise DatasetError(
            f"There is no dataset check {', '.join(unknown)}. Choose from {', '.join(get_args(DatasetCheck))}."
        )
    return [
        asset_checks(
            asset=key,
            tool="dvc",
            judges={name: (judges[name].__doc__ or "", partial(judge, name))},
            blocking=blocking,
            required_resource_keys=["dvc"] if name in _IN_REPOSITORY else (),
            options=check_options,
        )
        for name in checks
    ]


def _versions(instance: dg.DagsterInstance, key: dg.AssetKey) -> Iterator[tuple[Dataset, _Stored]]:
    """The latest version in each partition."""
    for partition in sorted(instance.get_materialized_partitions(key)) or [None]:
        partitions = [partition] if partition else None
        event = latest_event(instance, key, partitions)
        stored = event.asset_materialization.metadata if event and event.asset_materialization else None
        for record in latest_records(instance, key, partitions) if stored is None else records_in(stored):
            if isinstance(record, Dataset):
                yield record, stored


def _no_column_lost(dataset: Dataset, stored: _Stored) -> str:
    """Every column of the previous version is there, in the same type."""
    if stored is None:
        return _ONLY_OBSERVED
    changed = stored.get(COLUMNS_CHANGED)
    losses = [
        f"{row['column']} ({row['before']}{' is now ' + str(row['after']) if row['after'] else ''})"
        for row in ([record.data for record in changed.records] if changed else [])
        if row["change"] != "added"
    ]
    return f"lost {', '.join(losses)}" if losses else ""


def _remote_has_object(dataset: Dataset, dvc: DvcResource, repo: Repo) -> str:
    """The remote holds the content of the latest version, in the size that was stored."""
    pointer = dvc.pointer_if_any(dataset.path)
    remote, may_be_pushed = dvc.place_of(pointer)
    if not may_be_pushed:
        return ""
    content = _content(dataset, pointer)
    with raised_as(DatasetError, f"The remote of {dvc.root} cannot be read", Exception):
        odb = repo.cloud.get_remote_odb(remote, "status", hash_name=content.algorithm)
        if remote_has(odb, repo, dataset.md5, dataset.bytes):
            return ""
        return f"is not in {objects.remote_url(repo, remote)}: push it (`dvc push --all-commits`)"


def _cache_intact(dataset: Dataset, dvc: DvcResource, repo: Repo) -> str:
    """Each file in DVC's cache still hashes to its name."""
    damaged = objects.damaged(repo, _content(dataset, dvc.pointer_if_any(dataset.path)), reread=True)
    return f"is damaged in the cache: delete {damaged[0]}, then `dvc fetch`" if damaged else ""


def _content(dataset: Dataset, pointer: Mapping[str, Any] | None) -> Content:
    """The content of the version on Dagster's record; the pointer may name another one by now."""
    out = pointer["outs"][0] if pointer else {}
    return content_of(out) if out.get("md5") == dataset.md5 else Content(dataset.md5)


def _pointer_matches_data(dataset: Dataset, dvc: DvcResource, repo: Repo) -> str:
    """Git's pointer, Dagster and the data on disk agree on the version."""
    # Without git, or with commits turned off, the pointer on disk is the one that counts.
    [out] = dvc.pointer(dataset.path, rev="HEAD" if dvc.commits_to(repo) else None)["outs"]
    if out["md5"] != dataset.md5:
        return f"is {out['md5']} in git, but {dataset.md5} in Dagster: materialize or observe it"
    target = dvc.locate(dataset.path)
    if target.exists() and (content := pointers.content_hash(repo, target, content_of(out).algorithm)) != dataset.md5:
        return f"is {content} on disk, but {dataset.md5} in git: `dvc checkout` it, or store the change"
    return ""


_IN_REPOSITORY = {
    "remote_has_object": _remote_has_object,
    "cache_intact": _cache_intact,
    "pointer_matches_data": _pointer_matches_data,
}
