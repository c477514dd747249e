"""A bento that serves on this machine, verified against the registry before it takes traffic."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.bentoml.golden import golden_from
from dagster_mlops.bentoml.resource import BentomlResource
from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
from dagster_mlops.core.asset_records import asset_graph, dagster_facts, latest
from dagster_mlops.core.extras import extra
from dagster_mlops.core.gates import require_gates
from dagster_mlops.core.metadata import link
from dagster_mlops.core.options import merged_options
from dagster_mlops.core.table_hash import content_hash
from dagster_mlops.errors import DeploymentError
from dagster_mlops.provenance import Package
from dagster_mlops.serving.blue_green import Plan, rollout

if TYPE_CHECKING:
    import pandas as pd


def deployment_asset(
    *,
    name: str = "deployment",
    bento: AssetLike,
    golden_set: AssetLike | dg.AssetIn,
    state_dir: str | Path,
    port: int = 3000,
    tolerance: float = 1e-9,
    golden_rows: int = 200,
    route: str = "/predict",
    prediction_log: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    ready_timeout: float = 120,
    drain_seconds: float = 5,
    request_timeout: float = 30,
    resource_key: str = "bentoml",
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset that serves the bento which the asset `bento` recorded, behind Envoy on ``127.0.0.1:port``.

    The new server takes traffic only when it is ready and warm, its predictions for the golden set equal those of the
    registry's model, and it answers through the public port; then the old one drains and stops. When anything fails,
    the old one stays. Servers outlive the Dagster run. A re-run changes nothing while the same bento is live and
    healthy, replaces it when it died, and finishes or undoes what a killed run left.

        deployment = deployment_asset(
            bento="bento", golden_set="training_set", state_dir="state/serving", port=3000
        )

    Args:
        golden_set: an asset that its IO manager loads as a dataframe; columns the model does not take are left out.
        state_dir: where intent, state, logs and Envoy's configuration are kept; one public port per folder.
        tolerance: the largest difference between a served and a registry prediction.
        golden_rows: at most so many rows, evenly spread over the golden set.
        route: where the service takes ``{"rows": [...]}`` and answers ``{"predictions": [...]}``.
        prediction_log: where predictions are logged; ``state_dir/predictions`` unless given.
        environment: more environment variables for the server.
        asset_options: anything else that :func:`dagster.asset` takes.
    """

    bento_key = asset_key(bento)

    def deployment(context: dg.AssetExecutionContext, golden: Any) -> dg.MaterializeResult:
        graph = asset_graph(context)
        guarded = [bento_key, *sorted(graph.get(bento_key).parent_keys if graph.has(bento_key) else [], key=str)]
        evidence = require_gates(context, guarded)
        resource: BentomlResource = getattr(context.resources, resource_key)
        record = latest(
            context.instance,
            bento_key,
            Package,
            error=DeploymentError,
            hint="Materialize it first, or point bento= at the asset that builds the bento.",
        )
        folder = Path(state_dir).expanduser().resolve()
        model_uri = f"models:/{record.model_name}/{record.model_version}"
        plan = Plan(
            name=name,
            bento=record,
            state_dir=folder,
            port=port,
            environment={**resource.environment(), "BENTOML_HOME": record.home},
            extra_environment=dict(environment or {}),
            prediction_log=str(Path(prediction_log or folder / "predictions").expanduser().resolve()),
            golden_hash=_frame_hash(golden, golden_rows, tolerance),
            golden=lambda: golden_from(resource, model_uri, golden, golden_rows),
            facts=dagster_facts(context),
            route=route,
            tolerance=tolerance,
            ready_timeout=ready_timeout,
            drain_seconds=drain_seconds,
            request_timeout=request_timeout,
        )
        live, started = rollout(plan, context.log)
        return dg.MaterializeResult(
            # The same bento answers the same, whichever process serves it.
            data_version=dg.DataVersion(record.tag),
            metadata={
                **live.record.to_metadata(),
                "bentoml/bento": record.tag,
                **link("bentoml/url", live.record.url),
                "bentoml/pid": live.pid,
                "bentoml/server_port": live.port,
                "bentoml/ready_seconds": live.ready_seconds,
                "bentoml/switch_seconds": live.switch_seconds,
                "bentoml/started_server": started,
                "bentoml/gates": evidence,
            },
        )

    options = merged_options(
        asset_options,
        name=name,
        description="The live deployment: a served bento, verified on the golden set before it took traffic.",
        kinds=["bentoml"],
        deps=[bento_key],
        ins={"golden": asset_input(golden_set)},
        required_resource_keys=[resource_key],
    )
    return dg.asset(**options)(deployment)


def _frame_hash(frame: "pd.DataFrame", rows: int, tolerance: float) -> str:
    pandas = extra("pandas", extra="bentoml")
    if not isinstance(frame, pandas.DataFrame):
        raise DeploymentError(
            f"the golden set was loaded as {type(frame).__name__}, not as a dataframe. Use an unpartitioned asset "
            "whose IO manager gives a pandas dataframe."
        )
    facts = json.dumps([rows, tolerance, content_hash(frame, tool="bentoml")])
    return hashlib.sha256(facts.encode()).hexdigest()[:12]
