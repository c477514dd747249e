"""All use of Dagster's private names (1.13) but those of its Kubernetes configs, each with what is missing in public.

`tests/core/test_upstream.py` fails when Dagster has it, so that the name here can go.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import dagster as dg

# Raised by `context.repository_def` where there is none; `dagster` has no name for it:
# https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/libraries/dagster-shared/dagster_shared/check/functions.py
from dagster_shared.check import CheckError as CheckError


def reserved_names() -> frozenset[str]:
    """The names that Dagster takes for no asset, such as ``type``.

    https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/dagster/dagster/_core/definitions/utils.py
    """
    from dagster._core.definitions.utils import DISALLOWED_NAMES

    return frozenset(DISALLOWED_NAMES)


_INSTANCE: ContextVar[dg.DagsterInstance | None] = ContextVar("_INSTANCE", default=None)


def loaded_value(
    context: Any, key: dg.AssetKey, *, partition: str | None = None, python_type: type | None = None
) -> Any:
    """The value of an asset, as ``load_asset_value`` of a step's or check's context returns it, in half the time.

    For the two contexts that it gives to an IO manager, Dagster makes two instances with databases in memory, which
    nothing uses. Here they take the instance of `context`. No argument of Dagster's function does that.
    https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/dagster/dagster/_core/storage/asset_value_loader.py
    """
    from dagster._core.execution import build_resources

    module: Any = build_resources
    if not hasattr(module.ephemeral_instance_if_missing, "takes_ours"):
        module.ephemeral_instance_if_missing = _with_ours(module.ephemeral_instance_if_missing)
    token = _INSTANCE.set(context.instance)
    try:
        return context.load_asset_value(key, partition_key=partition, python_type=python_type)
    finally:
        _INSTANCE.reset(token)


def _with_ours(make: Any) -> Any:
    @contextmanager
    def ephemeral_instance_if_missing(instance: dg.DagsterInstance | None) -> Iterator[dg.DagsterInstance]:
        with make(instance or _INSTANCE.get()) as used:
            yield used

    ephemeral_instance_if_missing.takes_ours = True  # pyright: ignore[reportFunctionMemberAccess]
    return ephemeral_instance_if_missing


if TYPE_CHECKING:
    # The types of what `RepositoryDefinition.asset_graph` and `get_latest_asset_check_evaluation_record` return:
    # https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/dagster/dagster/__init__.py
    from dagster._core.definitions.assets.graph.asset_graph import AssetGraph as AssetGraph
    from dagster._core.storage.asset_check_execution_record import (
        AssetCheckExecutionRecord as AssetCheckExecutionRecord,
    )
else:
    AssetCheckExecutionRecord = AssetGraph = Any


def target_of(instance: dg.DagsterInstance, key: dg.AssetKey) -> Any:
    """The latest materialization of an asset as what an evaluation without a run has judged; None where there is none.

    A step's evaluation gets it from Dagster; the class that holds it has no public name.
    https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/dagster/dagster/_core/definitions/asset_checks/asset_check_evaluation.py
    """
    from dagster._core.definitions.asset_checks.asset_check_evaluation import (
        AssetCheckEvaluationTargetMaterializationData,
    )

    events = instance.fetch_materializations(key, limit=1).records
    if not events:
        return None
    event = events[0]
    return AssetCheckEvaluationTargetMaterializationData(
        storage_id=event.storage_id, run_id=event.run_id, timestamp=event.timestamp
    )
