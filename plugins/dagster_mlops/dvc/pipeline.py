"""A DVC project as assets: one per stage, run by DVC itself."""

import fnmatch
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

import dagster as dg

from dagster_mlops.core import markdown
from dagster_mlops.core.asset_records import code_facts, dagster_facts, upstream_refs
from dagster_mlops.core.code_state import CodeState, code_state
from dagster_mlops.core.options import specs_with_options
from dagster_mlops.dvc.assets import Observation, key_parts, observation, observing_step
from dagster_mlops.dvc.io_manager import PATH_KEY
from dagster_mlops.dvc.metadata_keys import CMD, EDITED, OUTS, PARAMS, STAGE
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.dvc.stages.project import Project, Stage, TrackedData, load_project
from dagster_mlops.dvc.stages.run import Run, StageRun, refuse_conflicts, share, stage_runs
from dagster_mlops.dvc.stages.ui_metadata import data_version, datasets, inputs, metadata
from dagster_mlops.dvc.stages.unshared import push_unshared, unshared
from dagster_mlops.dvc.store.contents import content_of
from dagster_mlops.dvc.store.git_commit import message
from dagster_mlops.dvc.store.lock_files import stages_in
from dagster_mlops.dvc.store.pointers import content_hash
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Dataset, mask_credentials

GetAssetSpec = Callable[[Stage | TrackedData], dg.AssetSpec]


def pipeline_assets(
    *,
    repo: str | Path,
    stages: Sequence[str] | None = None,
    get_asset_spec: GetAssetSpec | None = None,
    key_prefix: Sequence[str] = (),
    group_name: str | None = None,
    name: str = "dvc_pipeline",
    step_per_stage: bool = False,
    observe_data: bool = True,
    force: bool = False,
    pull: bool = True,
    env: Mapping[str, str] | None = None,
    **asset_options: Any,
) -> list[dg.AssetsDefinition]:
    """Every stage of a DVC project as an asset, executed by ``dvc repro``; tracked data and frozen stages observed.

        defs = dg.Definitions(
            assets=pipeline_assets(repo="/data/get-started", group_name="nlp"),
            resources={"dvc": DvcResource(repo="/data/get-started", push=False)},
        )

    A run brings exactly the selected stages up to date, in the project's order. DVC decides for each whether it is
    unchanged, restored from the run cache, or executed. The data version comes from ``dvc.lock``, the code version from
    command, code files and parameters. Bind a :class:`DvcResource` as ``dvc``; its `push` and `commit` say what happens
    to new outputs and to ``dvc.lock``.

    Args:
        repo: Folder of the DVC repository, whose ``dvc.yaml`` files are read without importing DVC.
        stages: Names, addresses or patterns such as ``train@*`` or ``models/dvc.yaml:*``; all by default.
        get_asset_spec: Function that sets keys, groups, owners and so on, starting from :func:`stage_asset_spec`.
            Dependencies among stages and data are added to its specs.
        key_prefix: Prefix of every key.
        group_name: Group of the assets.
        name: Name of the step; unique in a code location.
        step_per_stage: One step per stage, so that Dagster runs independent stages in parallel and retries each.
        observe_data: Whether tracked data and frozen stages are observable; false if other assets have their keys.
        force: Whether stages execute even if nothing changed.
        pull: Whether missing inputs and recorded outputs are fetched from cache and remote.
        env: Environment variables for the commands, such as the ``PATH`` of the project's virtual environment.
        asset_options: Attributes of the stages' assets, such as ``automation_condition``, ``owners`` or ``tags``, and
            what :func:`dagster.multi_asset` takes for their steps: ``pool``, ``retry_policy``, ``op_tags`` and so on.

    Raises:
        DatasetError: there is no DVC project, a pattern matches no stage, or two stages get the same key.
    """
    project = load_project(repo)
    selection = _selected(project, stages)
    items = [*project.stages, *project.data]
    specs = _specs(items, project, get_asset_spec or stage_asset_spec, key_prefix, group_name)
    runnable = [stage for stage in _ordered(project) if stage in selection and not stage.frozen]
    frozen = [stage for stage in project.stages if stage in selection and stage.frozen]

    def step(step_name: str, group: Sequence[Stage]) -> dg.AssetsDefinition:
        by_key = {specs[stage.address].key: stage for stage in group}
        stage_specs, step_options = specs_with_options([specs[stage.address] for stage in group], asset_options)
        required = {"dvc", *step_options.pop("required_resource_keys", ())}

        @dg.multi_asset(
            **step_options, specs=stage_specs, name=step_name, can_subset=True, required_resource_keys=required
        )
        def reproduce(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
            dvc: DvcResource = context.resources.dvc
            if dvc.commit:
                refuse_conflicts(dvc, project)
            if dvc.push:
                push_unshared(dvc, project)
            state: CodeState | None = None
            with stage_runs(dvc, project, log=context.log.info, force=force, pull=pull, env=env) as run:
                for key, stage in by_key.items():
                    if key in context.selected_asset_keys:
                        # What stages make is not code, but each may commit, and take long.
                        state = state or code_state(dvc.root, made=_made(project))
                        with unshared(dvc, stage) if dvc.push else nullcontext():
                            result, is_unchanged = _materialized(context, key, stage, run, project, state)
                        state = state if is_unchanged else None
                        yield result

        return reproduce

    if step_per_stage:
        steps = [step(f"{name}__{specs[s.address].key.to_python_identifier()}", [s]) for s in runnable]
    else:
        steps = [step(name, runnable)] if runnable else []
    items_by_key = {specs[item.address].key: item for item in (*project.data, *frozen)}
    if observe_data and items_by_key:
        observed_specs = [specs[item.address] for item in items_by_key.values()]
        steps.append(observing_step(observed_specs, partial(_observed, items_by_key), name=f"{name}_data"))
    return steps


def stage_asset_spec(item: Stage | TrackedData) -> dg.AssetSpec:
    """The asset of a stage or of tracked data, without dependencies: the start for your own `get_asset_spec`.

        def spec(item: Stage | TrackedData) -> dg.AssetSpec:
            return stage_asset_spec(item).replace_attributes(owners=["team:nlp"])

    The key of ``train@cnn`` in ``models/dvc.yaml`` is ``models/train/cnn``, that of ``data/raw.csv`` is
    ``data/raw_csv``; any character but letters, digits and ``_`` becomes ``_``.
    """
    if isinstance(item, TrackedData):
        origin = "Imported by" if item.imported else "Tracked by"
        facts = {PATH_KEY: item.path, "dvc/file": item.file}
        description = item.desc or str(markdown.formatted("{} {}", origin, item.file))
        return dg.AssetSpec(key_parts(item.path), description=description, metadata=facts, kinds={"dvc"})
    command = mask_credentials("\n".join(item.cmd))
    facts = {
        STAGE: item.address,
        CMD: markdown.metadata(markdown.block(command, "sh")),
        OUTS: [out.path for out in item.outs],
        **({PARAMS: dict(item.params)} if item.params else {}),
        **({"dvc/code": list(item.code)} if item.code else {}),
        **({"dvc/frozen": True} if item.frozen else {}),
    }
    paragraphs = [
        item.desc or markdown.code(command),
        # The descriptions of dvc.yaml may be Markdown.
        *(f"* {markdown.code(out.path)}: {out.desc}" for out in item.outs if out.desc),
    ]
    if item.frozen:
        paragraphs.append("Frozen in dvc.yaml: DVC does not run it, so it is only observed. To run it: `dvc unfreeze`.")
    return dg.AssetSpec(
        key_parts(f"{Path(item.file).parent.as_posix()}/{item.name.replace('@', '/')}"),
        description="\n\n".join(paragraphs),
        metadata=facts,
        code_version=item.code_version,
        kinds={"dvc"},
    )


def _materialized(
    context: dg.AssetExecutionContext, key: dg.AssetKey, stage: Stage, run: Run, project: Project, state: CodeState
) -> tuple[dg.MaterializeResult, bool]:
    """The materialization of a stage, and whether the stage was unchanged; `state` is that of the code before."""
    dvc: DvcResource = context.resources.dvc
    facts = dagster_facts(context, key)
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for maker in _inputs(project, stage):
        kept_by_hand = isinstance(maker, TrackedData) or maker.frozen
        kinds[kept_by_hand].append(maker.file if isinstance(maker, TrackedData) else maker.address)
    result = run(stage, sources=kinds[True], makers=kinds[False])
    context.log.info(f"Stage {stage.address}: {result.outcome} in {result.seconds:.1f} s")
    rev = share(dvc, stage, result, message(f"Run {stage.address}", facts))
    read = inputs(stage, result, str(dvc.root), project.tracked)
    exact = {ref.id.rpartition("@")[0] for ref in read}
    # DVC knows the stage's own inputs exactly, Dagster the other ones, such as assets that `get_asset_spec` added.
    other_refs = [ref for ref in upstream_refs(context, key) if ref.id.rpartition("@")[0] not in exact]
    facts |= code_facts(state, [*read, *other_refs])
    records = datasets(stage, result, repo=str(dvc.root), rev=rev, **facts)
    facts = metadata(stage, result, records, dvc.root)
    materialization = dg.MaterializeResult(asset_key=key, data_version=data_version(result), metadata=facts)
    return materialization, result.outcome == "unchanged"


def _made(project: Project) -> list[Path]:
    """The files that stages and DVC write and git may track: outputs, ``dvc.lock``, ``.gitignore`` beside outputs."""
    files = [path for stage in project.stages for path in stage.paths if "://" not in path]
    files += [f"{PurePosixPath(file).parent}/.gitignore" for file in files]
    files += [str(PurePosixPath(stage.file).with_name("dvc.lock")) for stage in project.stages]
    return [Path(os.path.normpath(project.root / file)) for file in dict.fromkeys(files)]


def _observed(items: Mapping[dg.AssetKey, Stage | TrackedData], dvc: DvcResource, spec: dg.AssetSpec) -> Observation:
    """The version in the workspace, since that is what a stage reads: also one that was edited and is not added yet."""
    item = items[spec.key]
    if isinstance(item, TrackedData):
        if not (edited := _edited(dvc, {item.path: dvc.pointer(item.path)["outs"][0]})):
            return observation(dvc, item.path, rev=None)
        record = Dataset(path=item.path, md5=edited[item.path], repo=str(dvc.root))
        return dg.DataVersion(record.md5), record.to_metadata({EDITED: [item.path]})
    file = dvc.root / Path(item.file).with_name("dvc.lock")
    entry = stages_in(file.read_bytes() if file.exists() else b"").get(item.name)
    if not entry:
        raise DatasetError(f"{file} has no stage {item.name!r}: it is frozen and never ran. `dvc commit` its outputs.")
    outs = {item.in_repo(out["path"]): out for out in entry.get("outs", ()) if "md5" in out}
    edited = _edited(dvc, outs)
    current = [{**out, "md5": edited.get(path, out["md5"])} for path, out in outs.items()]
    run = StageRun("frozen", {**entry, "outs": current}, {}, [], 0.0)
    facts = metadata(item, run, datasets(item, run, repo=str(dvc.root)), dvc.root)
    return data_version(run), {**facts, **({EDITED: [*edited]} if edited else {})}


def _edited(dvc: DvcResource, outs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The hashes of the outputs, by path, that are not on disk what their pointers name."""
    present = {path: out for path, out in outs.items() if (dvc.root / path).exists()}
    if not present:
        return {}
    with dvc.open(locked=False) as repo:
        hashes = {path: content_hash(repo, dvc.root / path, content_of(out).algorithm) for path, out in present.items()}
    return {path: md5 for path, md5 in hashes.items() if md5 != outs[path]["md5"]}


def _specs(
    items: Sequence[Stage | TrackedData],
    project: Project,
    translate: GetAssetSpec,
    key_prefix: Sequence[str],
    group_name: str | None,
) -> dict[str, dg.AssetSpec]:
    specs: dict[str, dg.AssetSpec] = {}
    takers: dict[str, list[str]] = defaultdict(list)
    for item in items:
        spec = translate(item)
        key = spec.key.with_prefix(key_prefix) if key_prefix else spec.key
        specs[item.address] = spec.replace_attributes(key=key, group_name=spec.group_name or group_name)
        takers[key.to_python_identifier()].append(item.address)
    if clashes := [" and ".join(names) for names in takers.values() if len(names) > 1]:
        raise DatasetError(
            f"{project.root} has stages or data with the same asset key: {'; '.join(clashes)}. Give them different "
            "keys by get_asset_spec."
        )
    for stage in project.stages:
        spec, makers = specs[stage.address], _inputs(project, stage)
        deps = [*spec.deps, *(specs[maker.address].key for maker in makers)]
        specs[stage.address] = spec.replace_attributes(deps=deps)
    return specs


def _inputs(project: Project, stage: Stage) -> list[Stage | TrackedData]:
    makers = [maker for dep in stage.deps for maker in project.makers(dep) if maker is not stage]
    return [*{maker.address: maker for maker in makers}.values()]


def _ordered(project: Project) -> list[Stage]:
    by_id = {stage.address: stage for stage in project.stages}
    before = {s.address: [m.address for m in _inputs(project, s) if isinstance(m, Stage)] for s in project.stages}
    return [by_id[name] for name in TopologicalSorter(before).static_order()]


def _selected(project: Project, patterns: Sequence[str] | None) -> list[Stage]:
    if patterns is None:
        return list(project.stages)
    selection: dict[str, Stage] = {}
    for pattern in patterns:
        matches = [s for s in project.stages if fnmatch.fnmatchcase(s.address, pattern) or s.name == pattern]
        if not matches:
            addresses = ", ".join(stage.address for stage in project.stages) or "none"
            raise DatasetError(f"No stage of {project.root} matches {pattern!r}. It has: {addresses}.")
        selection |= {stage.address: stage for stage in matches}
    return [*selection.values()]
