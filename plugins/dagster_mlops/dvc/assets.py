"""Assets whose data DVC versions: computed here, or observed where someone else stores them."""

import functools
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from dagster_mlops.core.asset_keys import asset_key
from dagster_mlops.core.metadata import ROW_COUNT
from dagster_mlops.core.options import merged_options, specs_with_options, with_signature
from dagster_mlops.dvc.io_manager import PATH_KEY, RESTORE_KEY, dvc_io_manager
from dagster_mlops.dvc.resource import DvcResource
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Dataset

Observation = tuple[dg.DataVersion, dict[str, Any]]
"""Version and metadata of an observed asset."""


def dataset_asset(
    *,
    path: str | None = None,
    partitions_def: dg.PartitionsDefinition | None = None,
    **asset_options: Any,
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """An asset whose returned data becomes a version of a DVC dataset. Bind a :class:`DvcResource` as ``dvc``.

        @dataset_asset(path="raw/flights/{partition}.parquet", partitions_def=MONTHS, group_name="raw")
        def flights(context: dg.AssetExecutionContext) -> pd.DataFrame:
            return download(context.partition_key)

    The function returns a frame, bytes, a string or the ``Path`` of a file or folder it wrote, alone or as the `value`
    of a ``dg.MaterializeResult`` with more metadata. Downstream assets take the data as an argument. The content hash
    is the asset's data version, so bytes that did not change leave everything downstream fresh.

    A run with the config ``{"ops": {"flights": {"outputs": {"result": {"restore": "v1.0"}}}}}`` materializes an older
    version (a git revision, a content hash or ``previous``) as the newest again, without calling the function.

    Args:
        path: Path of the dataset in the repository, with ``{partition}`` if partitioned; by default
            ``<asset key>[/<partition>].parquet``.
        partitions_def: Partitions of the asset; each is a separate dataset.
        asset_options: Whatever else ``dg.asset`` takes, such as ``key``, ``deps``, ``ins``, ``code_version``, ``pool``,
            ``retry_policy`` or ``automation_condition``.

    Raises:
        DatasetError: the asset is partitioned and `path` lacks ``{partition}``.
    """
    if partitions_def and path and "{partition}" not in path:
        raise DatasetError(f"A partitioned dataset needs one path per partition: put '{{partition}}' into {path!r}.")
    asset = stored_asset(
        asset_options,
        metadata={PATH_KEY: path} if path else {},
        # The IO manager decides what can be stored; a run that restores an old version returns nothing.
        dagster_type=dg.Any,
        partitions_def=partitions_def,
    )
    return lambda function: asset(_unless_restoring(function))


def stored_asset(
    asset_options: Mapping[str, Any], **defaults: Any
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """The decorator of an asset that DVC stores."""
    options = merged_options(asset_options, kinds=["dvc"], io_manager_def=dvc_io_manager, **defaults)
    return _without_beta_warning("Parameter `io_manager_def`", dg.asset, **options)


def _without_beta_warning(subject: str, make: Callable[..., Any], **options: Any) -> Any:
    """Call `make`, without a warning about what this library, and not its user, takes from Dagster."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", subject, dg.BetaWarning)
        return make(**options)


def key_parts(path: str) -> list[str]:
    """The parts of an asset key for a path in the repository: Dagster turns keys into Python identifiers."""
    return [re.sub(r"\W", "_", part, flags=re.ASCII) for part in path.split("/") if part not in ("", ".")]


def _unless_restoring(function: Callable[..., Any]) -> Callable[..., Any]:
    """The asset's function, not called in a run that restores an old version. Generators and coroutines are called."""
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        return function

    @functools.wraps(function)
    def compute(*arguments: Any, **keywords: Any) -> Any:
        try:
            context = dg.AssetExecutionContext.get()
        except dg.DagsterInvariantViolationError:  # called by a test rather than in a run
            return function(*arguments, **keywords)
        config: Any = context.run.run_config.get("ops", {})
        step_config = config.get(context.op_execution_context.op_handle.name) or {}
        if RESTORE_KEY in step_config.get("outputs", {}).get("result", {}):
            return dg.MaterializeResult(value=None)
        return function(*arguments, **keywords)

    return with_signature(compute)


def observed_dataset_assets(
    *,
    datasets: Mapping[str, str] | Sequence[dg.AssetSpec],
    repo: str | None = None,
    rev: str = "HEAD",
    name: str = "observed_datasets",
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """Datasets that someone else versions: observing them reads their pointers from git, without cache or remote.

        observed_dataset_assets(datasets={"vendor/prices": "vendor/prices.parquet"}, repo="/data/vendor")

    The data version is the content hash at `rev`, so downstream assets become stale when it moves.

    Args:
        datasets: Dataset path by asset key (``"a/b"``), or specs whose metadata names a ``dvc/path``.
        repo: Folder of the DVC repository; else that of the resource ``dvc``.
        rev: Git branch, tag or commit to follow.
        name: Name of the observing step; needed when there are several.
        asset_options: Attributes of the assets, such as ``group_name``, ``owners`` or ``tags``, and what
            :func:`dagster.multi_observable_source_asset` takes for the step.

    Raises:
        DatasetError: no dataset is given, or a spec lacks ``dvc/path``.
    """
    if isinstance(datasets, Mapping):
        paths = datasets.items()
        datasets = [dg.AssetSpec(asset_key(key), metadata={PATH_KEY: path}, kinds={"dvc"}) for key, path in paths]
    specs, step_options = specs_with_options(datasets, asset_options)
    pathless = [spec.key.to_user_string() for spec in specs if PATH_KEY not in spec.metadata]
    if pathless or not specs:
        raise DatasetError(
            f"Observed datasets need a {PATH_KEY!r} in their metadata: {', '.join(pathless) or 'none given'}."
        )

    def observe(dvc: DvcResource, spec: dg.AssetSpec) -> Observation:
        return observation(dvc, spec.metadata[PATH_KEY], rev=rev)

    return observing_step(specs, observe, repo=repo, name=name, **step_options)


def observing_step(
    specs: Sequence[dg.AssetSpec],
    observe: Callable[[DvcResource, dg.AssetSpec], Observation],
    *,
    repo: str | None = None,
    **step_options: Any,
) -> dg.AssetsDefinition:
    """The step that observes assets. If one of them raises a `DatasetError`, the step fails after the others."""
    required = {*step_options.pop("required_resource_keys", ()), *([] if repo else ["dvc"])}
    options = {**step_options, "specs": specs, "can_subset": True, "required_resource_keys": required}
    make = dg.multi_observable_source_asset

    @_without_beta_warning("Function `multi_observable_source_asset`", make, **options)
    def observations(context: dg.AssetExecutionContext) -> Iterable[dg.ObserveResult]:
        dvc = DvcResource(repo=repo) if repo else context.resources.dvc
        errors: list[DatasetError] = []
        for spec in specs:
            if spec.key in context.selected_asset_keys:
                try:
                    version, metadata = observe(dvc, spec)
                except DatasetError as error:
                    errors.append(error)
                else:
                    yield dg.ObserveResult(asset_key=spec.key, data_version=version, metadata=metadata)
        if errors:
            raise DatasetError(" ".join(map(str, errors))) from errors[0]

    return observations


def observed_dataset(dvc: DvcResource, path: str, *, rev: str | None = "HEAD") -> Dataset:
    """The record of a dataset from its pointer: at a git revision or, with None, as it is on disk.

    Raises:
        DatasetError: there is no such pointer.
    """
    from dagster_mlops.dvc.history.versions import record_of  # for steps, not for code locations

    return record_of(dvc, path, dvc.pointer(path, rev=rev), dvc.revision(path, rev=rev or "HEAD"))


def observation(dvc: DvcResource, path: str, *, rev: str | None) -> Observation:
    """The version and the metadata of a dataset that :func:`observed_dataset` finds."""
    record = observed_dataset(dvc, path, rev=rev)
    rows = {ROW_COUNT: record.rows} if record.rows is not None else {}
    return dg.DataVersion(record.md5), record.to_metadata(rows)
