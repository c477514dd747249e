"""A sensor that notices new versions of datasets on branches and tags."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dagster as dg

from dagster_mlops.core.asset_keys import asset_key
from dagster_mlops.core.metadata import DATA_VERSION
from dagster_mlops.core.options import known_options
from dagster_mlops.dvc.assets import observation
from dagster_mlops.dvc.metadata_keys import REV
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.store import pointers
from dagster_mlops.dvc.store.git_commit import blobs, run
from dagster_mlops.errors import DatasetError

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
    """Observes datasets, or starts runs, when a branch or tag gets other versions of them.

        revision_sensor(datasets={"vendor/prices": "vendor/prices.parquet"}, repo="/data/vendor", remote="origin")

    The pointers at a branch's commit are compared with those at the last commit that was seen, so history may be
    rewritten. The first tick saves the commits of branches and tags, and observes the datasets on the branches; each
    later tick looks at up to 20 branches and tags that moved. A run gets the tags ``dvc/ref`` and ``dvc/rev``.

    Args:
        datasets: Dataset path in the repository by asset key (``"a/b"``).
        name: Name of the sensor.
        repo: Folder of the DVC repository; else that of the resource ``dvc``.
        branches: Names or patterns such as ``release/*``. With several, an asset has the version seen last.
        tags: Names or patterns.
        remote: Git remote to fetch from first, for up to 20 s; its branches are read instead of local ones.
        mode: ``observe`` reports the new data versions of the assets, ``run`` requests runs.
        job: Job to run.
        asset_selection: Assets to run without a `job`; a run selects all of them.
        minimum_interval_seconds: Seconds between ticks.
        default_status: Status until someone switches the sensor on or off.
        sensor_options: Whatever else :func:`dagster.sensor` takes.

    Raises:
        DatasetError: no branches and tags, or mode ``run`` without `job` and `asset_selection`; in a tick: git fails.
    """
    targets = [job, asset_selection, *(sensor_options.get(name) for name in ("jobs", "job_name", "target"))]
    if mode == "run" and targets == [None] * len(targets):
        raise DatasetError(f"{name} has mode='run' but nothing to run. Pass job=… or asset_selection=….")
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
            **known_options(sensor_options, dg.sensor),
            "required_resource_keys": {*sensor_options.get("required_resource_keys", ()), *([] if repo else ["dvc"])},
        },
    )
    def revisions(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        dvc: DvcResource = DvcResource(repo=repo) if repo else context.resources.dvc
        if remote:
            problem = f"git cannot fetch {remote!r} into {dvc.root}"
            hint = f"Try `git fetch {remote}` there, and look at `git remote -v`."
            run(dvc.root, "fetch", "--quiet", "--prune", "--tags", "--force", remote, problem=problem, hint=hint)
        commits = _refs(dvc, patterns)
        seen: dict[str, str] | None = json.loads(context.cursor) if context.cursor else None
        moved = [ref for ref, commit in commits.items() if seen is None or seen.get(ref) != commit]
        if seen is None:
            refs = [ref for ref in moved if mode == "observe" and not ref.startswith("refs/tags/")]
            cursor = commits
        else:
            refs = moved[:_REFS_PER_TICK]
            # A deleted branch leaves the cursor; one that has to wait for the next tick stays as it was.
            cursor = {ref: seen[ref] for ref in commits if ref in seen} | {ref: commits[ref] for ref in refs}
        events: list[dg.AssetObservation] = []
        runs: list[dg.RunRequest] = []
        for ref in refs:
            before, commit = (seen or {}).get(ref, ""), commits[ref]
            # Git may have deleted the commit from before meanwhile.
            hashes, earlier = _hashes(dvc, datasets, commit), _hashes(dvc, datasets, before)
            changed = [key for key, md5 in hashes.items() if md5 != earlier.get(key)]
            if mode == "observe":
                for key in changed:
                    version, metadata = observation(dvc, datasets[key], rev=commit)
                    facts, tags = {**metadata, "dvc/ref": ref}, {DATA_VERSION: version.value}
                    events.append(dg.AssetObservation(asset_key=asset_key(key), metadata=facts, tags=tags))
            elif changed:
                # The old commit is part of the key, because a branch may return to an older commit.
                run_key = f"{ref}:{before}..{commit}"
                runs.append(dg.RunRequest(run_key=run_key, tags={"dvc/ref": ref, REV: commit}))
        result: dict[str, Any] = {"cursor": json.dumps(cursor, sort_keys=True)}
        if not events and not runs:
            where = f"{len(moved)} of {len(commits)} branches and tags that moved" if commits else ", ".join(patterns)
            return dg.SensorResult(**result, skip_reason=f"No new version of a dataset on {where} in {dvc.root}.")
        return dg.SensorResult(**result, asset_events=events, run_requests=runs)

    return revisions


def _refs(dvc: DvcResource, patterns: Sequence[str]) -> dict[str, str]:
    """The commit of every branch and tag that matches, in the order of their names."""
    # An annotated tag names the commit in the second field.
    problem, hint = f"git cannot list the branches of {dvc.root}", "Name a folder inside a git repository."
    format_of_rows = "--format=%(refname) %(objectname) %(*objectname)"
    listing = run(dvc.root, "for-each-ref", format_of_rows, *patterns, problem=problem, hint=hint)
    fields = [line.split() for line in listing.decode().splitlines()]
    return {ref: (commit or [tag])[0] for ref, tag, *commit in fields}


def _hashes(dvc: DvcResource, datasets: Mapping[str, str], rev: str) -> dict[str, str]:
    """The content hash of each dataset that has a pointer at a revision."""
    contents = blobs(dvc.root, [f"{rev}:./{dvc.name_of(path)}.dvc" for path in datasets.values()]) if rev else []
    by_key = {key: pointers.parse_pointer(content or b"") for key, content in zip(datasets, contents, strict=False)}
    return {key: pointer["outs"][0]["md5"] for key, pointer in by_key.items() if pointer}
