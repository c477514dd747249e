"""A package that serves on this machine, verified against the registered model before it takes traffic."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.arrays import pd
from dagster_mlops.core.asset_keys import AssetLike, asset_input, asset_key
from dagster_mlops.core.asset_records import dagster_facts
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.metadata import link
from dagster_mlops.core.options import asset_with
from dagster_mlops.core.resources import capable_resource
from dagster_mlops.core.table_hash import content_hash
from dagster_mlops.errors import DeploymentError

if TYPE_CHECKING:
    from dagster_mlops.serving.local.access import Access
    from dagster_mlops.serving.rollout_verdict.options import Canary, Shadow
    from dagster_mlops.serving.rollout_verdict.rollout import Rollout
    from dagster_mlops.serving.runtime import LogRules


_TRIALS = {
    "shadow": "A new deployment predicts as the one before, on a copy of each request.",
    "canary": "A new deployment is not worse than the one before, on growing shares of the requests.",
}


def deployment_asset(
    *,
    name: str = "deployment",
    package: AssetLike,
    golden_set: AssetLike | dg.AssetIn,
    state_dir: str | Path,
    resource_key: str,
    port: int = 8300,
    tolerance: float = 1e-9,
    golden_rows: int = 200,
    route: str = "",
    public: Sequence[str] = (),
    prediction_log: str | Path | None = None,
    log_sync_seconds: float = 1,
    log_rules: "LogRules | None" = None,
    environment: Mapping[str, str] | None = None,
    promoted_to: str = "",
    replicas: int = 2,
    workers: int | None = None,
    threads: int | None = None,
    ready_timeout: float = 120,
    drain_seconds: float | None = None,
    request_timeout: float = 30,
    access: "Access | None" = None,
    shadow: "Shadow | None" = None,
    canary: "Canary | None" = None,
    **asset_options: Any,
) -> dg.AssetsDefinition:
    """An asset that serves the package which the asset `package` recorded, behind Envoy on ``127.0.0.1:port``.

    The new server takes traffic only when it is ready and warm, its predictions for the golden set equal those of the
    registered model, and it answers through the public port; then the old one drains and stops. When anything fails,
    the old one stays. Servers outlive the Dagster run. A re-run changes nothing while the same package is live and
    healthy, replaces it when it died, and finishes or undoes what a killed run left.

        deployment = deployment_asset(
            package="bento", golden_set="training_set", state_dir="state/serving", resource_key="bentoml"
        )

    Args:
        package: An asset whose latest materialization holds the record of a package, such as a ``bento_asset``.
        golden_set: An asset that its IO manager loads as a dataframe; columns the model does not take are left out.
        state_dir: Folder for intent, state, logs and Envoy's configuration; one public port per folder.
        resource_key: The packaging tool's resource, such as ``BentomlResource``.
        tolerance: The largest difference between a served prediction and one of the registered model.
        golden_rows: The most rows that are compared, evenly spread over the golden set.
        route: The server's route for predictions, where it is not the packaging tool's usual one.
        public: More paths of the server that clients may reach, beside `route` and the one of readiness, such as
            ``/openapi.json``, ``/metrics`` or ``/*``, which leaves out ``/metrics``. On its
            own port, the server answers all.
        prediction_log: Folder of the prediction log; ``state_dir/predictions`` unless given.
        log_sync_seconds: Seconds of predictions that a power cut may cost; with 0, none that was answered.
        log_rules: Features that the log leaves out or hashes, the share of rows that it has, and the answer when the
            disk refuses one.
        environment: More environment variables for the server.
        replicas: Server processes behind Envoy, each with the whole model; with 2, one answers when the other ends.
        workers, threads: Processes of a replica, and threads of each, where the packaging tool knows them; those of the
            package unless given.
        drain_seconds: The most seconds that the deployment before gets at a switch to answer the requests that it has;
            it stops as soon as it has. `request_timeout` unless given.
        request_timeout: Seconds after which Envoy, and the server where it can, ends a request.
        access: Address, TLS, tokens and largest request of the public port; by default, loopback without the first two.
        shadow: Before the new deployment takes traffic, it gets a copy of each request, and must predict as the one
            before does, on all but the share of the inputs that this tolerates.
        canary: Then it gets growing shares of the requests, while it is not worse. Both are asset checks of these
            names, and leave the one before live when the verdict is ``back``. The run lasts as long as they do.
        promoted_to: An alias such as ``champion``: serve only the version whose promotion to it is on record in the
            model's history, with these files, and signed by a key in ``DAGSTER_MLOPS_PUBLIC_KEYS``.
        asset_options: Anything else that :func:`dagster.asset` takes.
    """
    key = asset_key(package)
    if log_rules:
        refuse_useless(f"deployment_asset {name!r}: log_rules", log_rules.faults())
    if access:
        refuse_useless(f"deployment_asset {name!r}: access", access.faults())

    trials = [trial for trial in (shadow, canary) if trial]

    def deployment(context: dg.AssetExecutionContext, golden: Any) -> Iterator[Any]:
        # For steps, not for code locations.
        from dagster_mlops.serving.local.access import LOOPBACK
        from dagster_mlops.serving.local.blue_green import Plan, rollout
        from dagster_mlops.serving.local.target import LocalTarget
        from dagster_mlops.serving.package_to_serve import package_to_serve
        from dagster_mlops.serving.packager import Packages, ServerSettings, server_of

        record, evidence = package_to_serve(context, key, promoted_to)
        packager = capable_resource(context, resource_key, Packages)
        private = log_rules.private if log_rules else {}
        if missing := sorted(set(private) - set(map(str, getattr(golden, "columns", private)))):
            raise DeploymentError(
                f"log_rules: the golden set has no feature {', '.join(map(repr, missing))}, so {name!r} would log it "
                "unchanged. Correct private=."
            )
        folder = Path(state_dir).expanduser().resolve()
        doors = (access or LOOPBACK).absolute()
        if doors.certificate:
            doors.read_pair()  # a fault is to be known before anything starts
        size = None if doors.request_bytes == LOOPBACK.request_bytes else doors.request_bytes
        settings = ServerSettings(workers=workers, threads=threads, timeout=request_timeout, request_bytes=size)
        plan = Plan(
            name=name,
            package=record,
            server=lambda server_port: server_of(packager, record, server_port, settings),
            target=LocalTarget(folder, port, request_timeout, doors, doors.read_tokens()),
            environment={
                **(log_rules.to_environment() if log_rules else {}),
                **(environment or {}),
            },
            prediction_log=str(Path(prediction_log or folder / "predictions").expanduser().resolve()),
            log_sync_seconds=log_sync_seconds,
            golden_hash=_frame_hash(golden, golden_rows, tolerance),
            golden=lambda: packager.golden(record, golden, golden_rows),
            facts=dagster_facts(context),
            route=route,
            public=public,
            tolerance=tolerance,
            replicas=replicas,
            ready_timeout=ready_timeout,
            drain_seconds=request_timeout if drain_seconds is None else drain_seconds,
            trials=trials,
            report=lambda kind, outcome: results.update({kind: _trial_result(kind, outcome)}),
        )
        results: dict[str, dg.AssetCheckResult] = {}
        try:
            live, started = rollout(plan, context.log)
        except Exception:
            for trial in trials:  # or the check would count as one that broke
                results.setdefault(trial.kind, _trial_result(trial.kind, "the deployment failed before."))
            raise
        finally:  # also those of a deployment that did not stand its trial
            yield from results.values()
        facts = {fact: getattr(live, fact) for fact in ("ready_seconds", "switch_seconds")}
        facts |= {"server_ports": list(live.ports), "started_server": started, "gates": evidence}
        if live.undone_package == record.tag:
            facts["rolled_back_package"] = record.tag
        yield dg.MaterializeResult(
            # The same package answers the same, whichever process serves it.
            data_version=dg.DataVersion(live.record.package),
            metadata=live.record.to_metadata(
                {
                    **link(f"{live.record.tool}/url", live.record.url),
                    **{f"{live.record.tool}/{fact}": value for fact, value in facts.items()},
                }
            ),
        )

    own_key = asset_options.get("key") or [*dg.AssetKey(asset_options.get("key_prefix") or []).path, name]
    specs = [
        dg.AssetCheckSpec(trial.kind, asset=asset_key(own_key), description=_TRIALS[trial.kind]) for trial in trials
    ]
    return asset_with(
        asset_options,
        name=name,
        check_specs=[*specs, *asset_options.pop("check_specs", ())] or None,
        deps=[key],
        ins={"golden": asset_input(golden_set)},
        required_resource_keys=[resource_key],
        description="The live deployment: a served package, verified on the golden set before it took traffic.",
    )(deployment)


def _trial_result(kind: str, outcome: "Rollout | str") -> dg.AssetCheckResult:
    from dagster_mlops.serving.rollout_verdict.result import rollout_check_result  # for steps, not for code locations

    if isinstance(outcome, str):
        return dg.AssetCheckResult(
            check_name=kind, passed=True, description=f"No {kind}: {outcome}", metadata={"rollout/verdict": "none"}
        )
    return rollout_check_result(rollout=outcome, check_name=kind)


def _frame_hash(frame: "pd.DataFrame", rows: int, tolerance: float) -> str:
    if not isinstance(frame, pd.DataFrame):
        raise DeploymentError(
            f"the golden set was loaded as {type(frame).__name__}, not as a dataframe. Use an unpartitioned asset "
            "whose IO manager gives a pandas dataframe."
        )
    facts = json.dumps([rows, tolerance, content_hash(frame, tool="bentoml")])
    return hashlib.sha256(facts.encode()).hexdigest()[:12]
