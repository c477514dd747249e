"""Checks on datasets: the content is in place and intact, no column was lost, and there are enough rows."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.asset_records import latest_event, latest_records
from dagster_mlops.core.checks import asset_checks
from dagster_mlops.core.extras import extra
from dagster_mlops.dvc.history.comparison import COLUMNS_CHANGED, ROWS_DELTA
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.store import objects, pointers
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Dataset

if TYPE_CHECKING:
    from dvc.repo import Repo

DatasetCheck = Literal[
    "remote_has_object", "row_count", "no_column_lost", "row_count_within", "cache_intact", "pointer_matches_data"
]


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

    def row_count(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        datasets = list(_datasets(context.instance, key))
        return _verdict(
            datasets, {d.path: f"has fewer than {min_rows} rows" for d in datasets if (d.rows or 0) < min_rows}
        )

    def row_count_within(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        problems: dict[str, str] = {}
        events = list(_events(context.instance, key))
        for dataset, metadata in events:
            delta = metadata.get(ROWS_DELTA)
            if delta is None or dataset.rows is None:
                continue
            before = dataset.rows - delta.value
            if not min_ratio * before <= dataset.rows <= max_ratio * before:
                problems[dataset.path] = (
                    f"has {dataset.rows} rows after {before}, which is not {min_ratio:g} to {max_ratio:g} times as many"
                )
        return _verdict([dataset for dataset, _ in events], problems)

    def no_column_lost(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        problems: dict[str, str] = {}
        events = list(_events(context.instance, key))
        for dataset, metadata in events:
            changed = metadata.get(COLUMNS_CHANGED)
            rows = [record.data for record in changed.records] if changed else []
            losses = [
                f"{row['column']} ({row['before']}{' is now ' + str(row['after']) if row['after'] else ''})"
                for row in rows
                if row["change"] != "added"
            ]
            if losses:
                problems[dataset.path] = f"lost {', '.join(losses)}"
        return _verdict([dataset for dataset, _ in events], problems)

    def remote_has_object(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        dvc: DvcResource = context.resources.dvc
        datasets = list(_datasets(context.instance, key))
        with dvc.open(locked=False) as repo:
            try:
                odb = repo.cloud.get_remote_odb(dvc.remote, "status")
                missing = [d.path for d in datasets if not objects.remote_has(odb, repo, d.md5, d.bytes)]
                remote = objects.remote_url(repo, dvc.remote)
            except Exception as error:
                raise DatasetError(f"The remote of {dvc.root} cannot be read: {error}") from error
        return _verdict(datasets, dict.fromkeys(missing, f"is not in {remote}: push it (`dvc push --all-commits`)"))

    def cache_intact(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        datasets = list(_datasets(context.instance, key))
        problems: dict[str, str] = {}
        with context.resources.dvc.open(locked=False) as repo:
            for dataset in datasets:
                if damaged := objects.damaged(repo, dataset.md5, reread=True):
                    problems[dataset.path] = f"is damaged in the cache: delete {damaged[0]}, then `dvc fetch`"
        return _verdict(datasets, problems)

    def pointer_matches_data(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        datasets = list(_datasets(context.instance, key))
        with context.resources.dvc.open(locked=False) as repo:
            mismatches = {d.path: _mismatch(context.resources.dvc, repo, d) for d in datasets}
        return _verdict(datasets, {path: problem for path, problem in mismatches.items() if problem})

    judges = {
        judge.__name__: judge
        for judge in (
            remote_has_object,
            row_count,
            no_column_lost,
            row_count_within,
            cache_intact,
            pointer_matches_data,
        )
    }
    checks = list(checks)
    if unknown := [name for name in checks if name not in judges]:
        raise DatasetError(f"There is no dataset check {', '.join(unknown)}. Choose from {', '.join(judges)}.")
    return [
        asset_checks(
            asset=key,
            tool="dvc",
            judges={name: (_DESCRIPTIONS[name], judges[name])},
            blocking=blocking,
            required_resource_keys=["dvc"] if name in _NEED_DVC else (),
            options=check_options,
        )
        for name in checks
    ]


_DESCRIPTIONS: dict[str, str] = {
    "remote_has_object": "The remote holds the content of the latest version, in the size that was stored.",
    "row_count": "Each partition has enough rows.",
    "no_column_lost": "Every column of the previous version is there, in the same type.",
    "row_count_within": "The number of rows is in proportion to that of the previous version.",
    "cache_intact": "Each file in DVC's cache still hashes to its name.",
    "pointer_matches_data": "Git's pointer, Dagster and the data on disk agree on the version.",
}
_NEED_DVC = ("remote_has_object", "cache_intact", "pointer_matches_data")
assert set(_DESCRIPTIONS) == set(get_args(DatasetCheck))


def _datasets(instance: dg.DagsterInstance, key: dg.AssetKey) -> Iterator[Dataset]:
    partitions = sorted(instance.get_materialized_partitions(key))
    for record in latest_records(instance, key, partitions or None):
        if isinstance(record, Dataset):
            yield record


def _events(instance: dg.DagsterInstance, key: dg.AssetKey) -> Iterator[tuple[Dataset, Mapping[str, Any]]]:
    """The record and the metadata of each partition's latest materialization."""
    for partition in sorted(instance.get_materialized_partitions(key)) or [None]:
        if event := latest_event(instance, key, [partition] if partition else None):
            metadata = event.asset_materialization.metadata if event.asset_materialization else {}
            if dataset := Dataset.from_metadata(metadata):
                yield dataset, metadata


def _mismatch(dvc: DvcResource, repo: "Repo", dataset: Dataset) -> str:
    # Without git, or with commits turned off, the pointer on disk is the one that counts.
    versioned = dvc.commit and not isinstance(repo.scm, extra("dvc.scm").NoSCM)
    pointer = dvc.data_version(dataset.path, rev="HEAD" if versioned else None)
    if pointer != dataset.md5:
        return f"is {pointer} in git, but {dataset.md5} in Dagster: materialize or observe it"
    target = dvc.locate(dataset.path)
    if target.exists() and (content := pointers.content_hash(repo, target)) != pointer:
        return f"is {content} on disk, but {pointer} in git: `dvc checkout` it, or store the change"
    return ""


def _verdict(datasets: list[Dataset], problems: Mapping[str, str]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=bool(datasets) and not problems,
        description="; ".join(f"{path} {problem}" for path, problem in list(problems.items())[:5])
        or (None if datasets else "There is no dataset yet: materialize the asset."),
        metadata={
            "versions": len(datasets),
            "broken": len(problems),
            "rows": sum(d.rows or 0 for d in datasets),
            "bytes": sum(d.bytes or 0 for d in datasets),
        },
    )
