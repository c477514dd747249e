"""A sensor that notices new versions of datasets on branches and tags."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dagster as dg

from dagster_mlops.core.asset_keys import asset_key
from dagster_mlops.core.git import git
from dagster_mlops.core.metadata import ROW_COUNT
from dagster_mlops.dvc.assets import observed_dataset
from dagster_mlops.dvc.metadata_keys import REV
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.store import pointers as versions
from dagster_mlops.dvc.store.git_commit import blobs
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import mask_credentials

_REFS_PER_TICK = 20


def revision_sensor(
    *,
    datasets: Mapping[str, str],
    name: str = "dataset_revisions",
    repo: str | None = None,
    branches: Sequence[str] = ("main",),
    tags: Sequence[str] = (),
    remote: str | None = None,
    mode: Literal["observe", "run"] = "observe",
    job: Any = None,
    asset_selection: Any = None,
    minimum_interval_seconds: int = 60,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
    **sensor_options: Any,
) -> dg.SensorDefinition:
    """Observes datasets, or starts runs, when a branch or tag comes to name other versions of them.

        revision_sensor(datasets={"vendor/prices": "vendor/prices.parquet"}, repo="/data/vendor", remote="origin")

    The pointers at a branch's commit are compared with those at the commit seen last, so history may be rewritten. The
    first tick notes where branches and tags are, and observes what the branches hold; later ticks look at what moved,
    at most 20 branches and tags each. A run gets the tags ``dvc/ref`` and ``dvc/rev``.

    Args:
        datasets: dataset path in the repository by asset key (``"a/b"``).
        name: the sensor's name.
        repo: folder of the DVC repository; else that of the resource ``dvc``.
        branches: names or patterns such as ``release/*``. With several, an asset has the version seen last.
        tags: names or patterns.
        remote: a git remote to fetch from first, at most 20 s; its branches are looked at instead of local ones.
        mode: ``observe`` reports the new data versions of the assets, ``run`` requests runs.
        job: what to run.
        asset_selection: what to run without a `job`; a run selects all of it.
        minimum_interval_seconds: time between ticks.
        default_status: whether it starts by itself.
        sensor_options: Whatever else :func:`dagster.sensor` takes.

    Raises:
        DatasetError: no branches and tags, or mode ``run`` without `job` and `asset_selection`; in a tick: git fails.
    """
    targets = [job, asset_selection, *(sensor_options.get(name) for name in ("jobs", "job_name", "target"))]
    if mode == "run" and targets == [None] * len(targets):
        raise DatasetError(f"{name} is to request runs, but of what? Pass job=… or asset_selection=….")
    patterns = [f"refs/remotes/{remote}/{branch}" if remote else f"refs/heads/{branch}" for branch in branches]
    patterns += [f"refs/tags/{tag}" for tag in tags]
    if not patterns:
        raise DatasetError(f"{name} has nothing to look at. Name branches=[…] or tags=[…].")

    @dg.sensor(
        name=name,
        job=job,
        asset_selection=asset_selection,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        **{
            "description": f"New versions of {', '.join(datasets.values())} on {', '.join([*branches, *tags])}.",
            **sensor_options,
            "required_resource_keys": {*sensor_options.get("required_resource_keys", ()), *([] if repo else ["dvc"])},
        },
    )
    def revisions(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        dvc: DvcResource = DvcResource(repo=repo) if repo else context.resources.dvc
        if remote:
            _fetch(dvc, remote)
        now = _refs(dvc, patterns)
        seen: dict[str, str] | None = json.loads(context.cursor) if context.cursor else None
        moved = [ref for ref, commit in now.items() if seen is None or seen.get(ref) != commit]
        if seen is None:
            looked_at = [ref for ref in moved if mode == "observe" and not ref.startswith("refs/tags/")]
            known = dict(now)
        else:
            looked_at = moved[:_REFS_PER_TICK]
            # A branch that is gone is forgotten; one that is not looked at in this tick keeps its place.
            known = {ref: seen[ref] for ref in now if ref in seen} | {ref: now[ref] for ref in looked_at}
        events: list[dg.AssetObservation] = []
        runs: list[dg.RunRequest] = []
        for ref in looked_at:
            before, commit = (seen or {}).get(ref, ""), now[ref]
            changed = _changed(dvc, datasets, before, commit)
            if mode == "observe":
                events += [_observation(dvc, key, datasets[key], ref, commit) for key in changed]
            elif changed:
                # What moved, and from where: a branch that returns to an older commit is news, too.
                run_key = f"{ref}:{before}..{commit}"
                runs.append(dg.RunRequest(run_key=run_key, tags={"dvc/ref": ref, REV: commit}))
        result: dict[str, Any] = {"cursor": json.dumps(known, sort_keys=True)}
        if not events and not runs:
            where = ", ".join(patterns) if not now else f"{len(moved)} of {len(now)} branches and tags that moved"
            return dg.SensorResult(**result, skip_reason=f"No new version of a dataset on {where} in {dvc.root}.")
        return dg.SensorResult(**result, asset_events=events, run_requests=runs)

    return revisions


def _fetch(dvc: DvcResource, remote: str) -> None:
    done = git(dvc.root, "fetch", "--quiet", "--prune", "--tags", "--force", remote)
    if done.returncode:
        raise DatasetError(
            f"git cannot fetch {remote!r} into {dvc.root}: {mask_credentials(done.stderr.decode().strip())} "
            f"Try `git fetch {remote}` there, and look at `git remote -v`."
        )


def _refs(dvc: DvcResource, patterns: Sequence[str]) -> dict[str, str]:
    """The commit of every branch and tag that fits, in the order of their names."""
    # An annotated tag names the commit in the second field.
    listed = git(dvc.root, "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", *patterns)
    if listed.returncode:
        raise DatasetError(
            f"git cannot list the branches of {dvc.root}: {listed.stderr.decode().strip()} "
            "Name a folder inside a git repository."
        )
    fields = [line.split() for line in listed.stdout.decode().splitlines()]
    return {ref: (commit or [tag])[0] for ref, tag, *commit in fields}


def _changed(dvc: DvcResource, datasets: Mapping[str, str], before: str, commit: str) -> list[str]:
    """The assets whose pointers name other content than at the commit seen before, which git may have dropped."""
    files = [versions.pointer_of(dvc.locate(path)).relative_to(dvc.root).as_posix() for path in datasets.values()]
    new = blobs(dvc.root, [f"{commit}:./{file}" for file in files])
    old = blobs(dvc.root, [f"{before}:./{file}" for file in files]) if before else [None] * len(files)
    return [
        key
        for key, was, now in zip(datasets, old, new, strict=True)
        if (pointer := versions.parse_pointer(now or b"")) and not _names_the_same(was, pointer)
    ]


def _names_the_same(text: bytes | None, pointer: Mapping[str, Any]) -> bool:
    other = versions.parse_pointer(text or b"")
    return other is not None and other["outs"][0]["md5"] == pointer["outs"][0]["md5"]


def _observation(dvc: DvcResource, key: str, path: str, ref: str, commit: str) -> dg.AssetObservation:
    record = observed_dataset(dvc, path, rev=commit)
    rows = {ROW_COUNT: record.rows} if record.rows is not None else {}
    return dg.AssetObservation(
        asset_key=asset_key(key),
        metadata={**record.to_metadata(), **rows, "dvc/ref": ref},
        tags={"dagster/data_version": record.md5},
    )
