"""The package that a deployment asset is to serve, with what must hold before anything is started."""

from typing import Any

import dagster as dg

from dagster_mlops.core.asset_records import asset_graph, latest
from dagster_mlops.core.gates import require_gates
from dagster_mlops.errors import DeploymentError
from dagster_mlops.provenance import Package


def package_to_serve(
    context: dg.AssetExecutionContext, key: dg.AssetKey, promoted_to: str
) -> tuple[Package, dict[str, Any]]:
    """The record on the latest materialization of `key`, and the gates that were green for it and its parents.

    Raises:
        DeploymentError: there is no record, or the promotion of its version to the alias `promoted_to` is not proved.
        GateError: a gate is not green.
    """
    from dagster_mlops.promotion.statement import require_statement  # for steps, not for code locations

    graph = asset_graph(context)
    evidence = require_gates(context, [key, *sorted(graph.get(key).parent_keys if graph.has(key) else [], key=str)])
    hint = "Materialize it first, or name the asset that builds the package."
    record = latest(context, key, Package, error=DeploymentError, hint=hint)
    if promoted_to:
        statement = require_statement(record, promoted_to)
        context.log.info(f"Entry {statement.index} of the history promoted version {statement.after}.")
    return record, evidence
