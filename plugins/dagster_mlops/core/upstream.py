"""All use of Dagster's private names (1.13) but those of its Kubernetes configs, each with what is missing in public.

`tests/core/test_upstream.py` fails when Dagster has it, so that the name here can go.
"""

from typing import TYPE_CHECKING, Any

# Raised by `context.repository_def` where there is none; `dagster` has no name for it:
# https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/libraries/dagster-shared/dagster_shared/check/functions.py
from dagster_shared.check import CheckError as CheckError


def reserved_names() -> frozenset[str]:
    """The names that Dagster takes for no asset, such as ``type``.

    https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/dagster/dagster/_core/definitions/utils.py
    """
    from dagster._core.definitions.utils import DISALLOWED_NAMES

    return frozenset(DISALLOWED_NAMES)


if TYPE_CHECKING:
    # The types of what `RepositoryDefinition.asset_graph` and `get_latest_asset_check_evaluation_record` return:
    # https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/dagster/dagster/__init__.py
    from dagster._core.definitions.assets.graph.asset_graph import AssetGraph as AssetGraph
    from dagster._core.storage.asset_check_execution_record import (
        AssetCheckExecutionRecord as AssetCheckExecutionRecord,
    )
else:
    AssetCheckExecutionRecord = AssetGraph = Any
