"""Envoy's configuration documents: the public listener, the replicas of each deployment, and who gets which request.

Functions make documents of plain values; `envoy.py` writes them and runs Envoy.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.serving.runtime.attempts import TOKEN

DEPLOYMENT_HEADER = "x-deployment"
SELECT_HEADER = "x-select-deployment"  # with a deployment's secret, it reaches that one, live or not
PROBE_HEADER = "x-probe"  # with the secret of the live deployment, it marks a golden row
MIRROR_HEADER = "x-mirrored"  # with a deployment's secret, it marks a copy of a request, whose answer goes to no one
_NOT_SENT = "connect-failure,reset-before-request,refused-stream"
_FROM_OUTSIDE = (SELECT_HEADER, PROBE_HEADER, MIRROR_HEADER)
TRIAL = ".trial"  # ends the name of a cluster whose counters hold only requests that two deployments are compared by
_MOST_CONNECTIONS = 4096
_MOST_MEMORY = 2**30  # bytes of Envoy, from which on it answers 503
TOKENS = "envoy.filters.http.rbac"
LISTENER = "lds.json"
METRICS = "/metrics"  # of any server; counts of requests are not for every client
ADMIN = "envoy/admin.sock"  # from the state folder, because the path of a socket has at most 107 characters


@lazy_dataclass(frozen=True)
class Backend:
    """The replicas of one deployment. Who knows its secret may select it, or send it golden rows.

    `public` are the paths that everyone reaches; one that ends in ``/*`` stands for all below it. A replica that
    `refuses_repeats` scores no request that another one may have scored.
    """

    name: str
    ports: Sequence[int]
    readiness: str
    secret: str
    public: Sequence[str] = ("/*",)
    refuses_repeats: bool = False


@lazy_dataclass(frozen=True)
class Trial:
    """Requests for predictions, at `path`, that a deployment gets on trial: a share of them, or a copy of each."""

    path: str
    share: float = 0.0
    mirrored: bool = False


def bootstrap(state_dir: Path) -> str:
    """The part that Envoy reads once: the files that it watches for all that may change, and limits of its own."""
    return json.dumps(
        {
            "node": {"id": "public", "cluster": "public"},
            "admin": {"address": {"pipe": {"path": ADMIN, "mode": 0o600}}},
            # Patterns are those of `public` paths, which together may be longer than a hundred steps.
            "layered_runtime": {
                "layers": [{"name": "limits", "static_layer": {"re2.max_program_size.error_level": 100_000}}]
            },
            "dynamic_resources": {
                "lds_config": watched(state_dir, LISTENER),
                "cds_config": watched(state_dir, "cds.json"),
            },
            "overload_manager": {
                "refresh_interval": "0.25s",
                "actions": [
                    {
                        "name": "envoy.overload_actions.stop_accepting_requests",
                        "triggers": [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": 0.95}}],
                    }
                ],
                "resource_monitors": [
                    {
                        "name": "envoy.resource_monitors.fixed_heap",
                        "typed_config": typed(
                            "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                            max_heap_size_bytes=_MOST_MEMORY,
                        ),
                    },
                    {
                        "name": "envoy.resource_monitors.global_downstream_max_connections",
                        "typed_config": typed(
                            "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                            max_active_downstream_connections=_MOST_CONNECTIONS,
                        ),
                    },
                ],
            },
        },
        indent=1,
    )


def clusters(backends: Sequence[Backend]) -> str:
    """The document of all replicas; with two deployments, each has a second cluster for requests on trial."""
    on_trial = [replace(backend, name=f"{backend.name}{TRIAL}") for backend in backends if len(backends) > 1]
    return json.dumps({"resources": [_cluster(backend) for backend in [*backends, *on_trial]]}, indent=1)


def routes(live: Backend | None, standby: Backend | None, trial: Trial | None = None, *, request_timeout: float) -> str:
    """The document that sends requests to `live`; to `standby`, those on `trial`, and those with its secret."""
    entries = []
    if standby:
        entries.append(_route(standby, request_timeout, {SELECT_HEADER: standby.secret}, _FROM_OUTSIDE))
    if live:
        entries.append(_route(live, request_timeout, {PROBE_HEADER: live.secret}, (SELECT_HEADER, MIRROR_HEADER)))
        if standby and trial and (trial.share or trial.mirrored):
            pair = replace(live, refuses_repeats=live.refuses_repeats and standby.refuses_repeats)
            entries.append(_on_trial(_route(pair, request_timeout, {}, _FROM_OUTSIDE), live, standby, trial))
        entries.append(_route(live, request_timeout, {}, _FROM_OUTSIDE))
    else:
        body = {"inline_string": json.dumps({"error": "no deployment is live"})}
        entries.append({"match": {"prefix": "/"}, "direct_response": {"status": 503, "body": body}})
    hosts = [{"name": "live", "domains": ["*"], "routes": entries, "include_request_attempt_count": True}]
    config = typed("config.route.v3.RouteConfiguration", name="live", virtual_hosts=hosts)
    return json.dumps({"resources": [config]}, indent=1)


def guarded(document: str, live: Backend | None, *, request_bytes: int, tokens: Sequence[str]) -> str:
    """A document of routes for requests that are small enough, from clients with a token; no server sees that.

    Readiness is for everyone. Requests with a secret of a deployment need no token: they are the rollout's. A server's
    metrics are closed unless `live` names them.
    """
    resources = json.loads(document)
    [config] = resources["resources"]
    [host] = config["virtual_hosts"]
    if live and METRICS not in live.public:
        nothing = {"match": {"safe_regex": {"regex": f"{METRICS}(?:/.*)?"}}, "direct_response": {"status": 404}}
        host["routes"].insert(0, nothing)
    large = {"name": "content-length", "range_match": {"start": request_bytes + 1, "end": 2**63 - 1}}
    refusal = {"match": {"prefix": "/", "headers": [large]}, "direct_response": {"status": 413}}
    host["routes"].insert(0, refusal)
    if not tokens:
        return json.dumps(resources, indent=1)
    is_secret = lambda route: any(header["name"] in _SECRETS for header in route["match"].get("headers", ()))  # noqa: E731
    host["routes"] = [{**route, **_OPEN} if is_secret(route) else route for route in host["routes"]]
    if live:
        host["routes"].insert(-1, {**host["routes"][-1], "match": {"path": live.readiness}, **_OPEN})
    # Not a pattern: Envoy takes short ones only, and writes one that it refuses to its log.
    values = [f"{scheme} {token}" for token in tokens for scheme in ("Bearer", "bearer")]
    principals = [{"header": {"name": "authorization", "string_match": {"exact": value}}} for value in values]
    policy = {"permissions": [{"any": True}], "principals": principals}
    rules = {"rules": {"action": "ALLOW", "policies": {"tokens": policy}}}
    config["typed_per_filter_config"] = {TOKENS: typed("extensions.filters.http.rbac.v3.RBACPerRoute", rbac=rules)}
    config["request_headers_to_remove"] = ["authorization"]
    return json.dumps(resources, indent=1)


def live_cluster(document: str) -> str | None:
    """The deployment that a document of routes sends requests to."""
    try:
        last = json.loads(document)["resources"][0]["virtual_hosts"][0]["routes"][-1]
        return last.get("route", {}).get("cluster")
    except (ValueError, LookupError, AttributeError, TypeError):  # someone changed the file
        return None


def typed(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/envoy.{kind}", **fields}


def address(port: int, host: str = "127.0.0.1") -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


_SECRETS = (SELECT_HEADER, PROBE_HEADER)
_OPEN = {"typed_per_filter_config": {TOKENS: typed("config.route.v3.FilterConfig", disabled=True)}}


def watched(state_dir: Path, name: str) -> dict[str, Any]:
    folder = str(state_dir / "envoy" / "live")
    source = {"path": f"{folder}/{name}", "watched_directory": {"path": folder}}
    return {"resource_api_version": "V3", "path_config_source": source}


# A look at all, not at two at random, which may both be the one replica that is busy.
_LEAST_REQUESTS = {
    "name": "envoy.load_balancing_policies.least_request",
    "typed_config": typed(
        "extensions.load_balancing_policies.least_request.v3.LeastRequest", selection_method="FULL_SCAN"
    ),
}


def _cluster(backend: Backend) -> dict[str, Any]:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(port)}} for port in backend.ports]}]
    # A closed port is noticed in less than a second. A server that only takes long has twice the timeout.
    health_check = {
        "timeout": "2s",
        "interval": "0.5s",
        "no_traffic_interval": "0.5s",
        "unhealthy_interval": "0.25s",
        "unhealthy_edge_interval": "0.25s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "http_health_check": {"path": backend.readiness},
    }
    # Two connections that broke in a row keep requests away until the next health check that succeeds. Answers, such as
    # a 500, do not count: the same model answers everywhere.
    outlier_detection = {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 2,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "enforcing_failure_percentage": 0,
        "enforcing_failure_percentage_local_origin": 0,
        "interval": "0.5s",
        "base_ejection_time": "2s",
        "max_ejection_time": "2s",
        "max_ejection_percent": 100,
    }
    protocol = typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        explicit_http_config={"http_protocol_options": {}},
        # The backend's HTTP server drops idle connections after 5 s; be first, or a request may meet the drop.
        common_http_protocol_options={"idle_timeout": "3s"},
    )
    return typed(
        "config.cluster.v3.Cluster",
        name=backend.name,
        type="STATIC",
        load_balancing_policy={"policies": [{"typed_extension_config": _LEAST_REQUESTS}]},
        connect_timeout="1s",
        load_assignment={"cluster_name": backend.name, "endpoints": endpoints},
        # With no healthy replica, answer 503 at once, rather than "panic" and try the dead ones.
        # A replica that is back gets requests at once; by default, Envoy collects such changes for a second.
        common_lb_config={"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"},
        health_checks=[health_check],
        outlier_detection=outlier_detection,
        # By default, three retries at a time: fewer than the requests that a dead replica had.
        circuit_breakers={"thresholds": [{"max_retries": 1024}]},
        typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
    )


def _on_trial(entry: dict[str, Any], live: Backend, standby: Backend, trial: Trial) -> dict[str, Any]:
    """The route of `live`, changed to that of requests on trial; each is shared out at random, by itself."""
    clusters = [f"{backend.name}{TRIAL}" for backend in (live, standby)]
    action = {**entry["route"], "cluster": clusters[0]}
    if trial.mirrored:
        mark = {"append": _header(MIRROR_HEADER, standby.secret)}
        mirror = {
            "cluster": clusters[1],
            "request_headers_mutations": [mark],
            "disable_shadow_host_suffix_append": True,
        }
        action["request_mirror_policies"] = [mirror]
    else:
        del action["cluster"], entry["response_headers_to_add"]
        millionths = round(trial.share * 1_000_000)
        action["weighted_clusters"] = {
            "clusters": [
                {"name": name, "weight": weight, "response_headers_to_add": [_header(DEPLOYMENT_HEADER, backend.name)]}
                for name, weight, backend in zip(
                    clusters, (1_000_000 - millionths, millionths), (live, standby), strict=True
                )
            ]
        }
    return {**entry, "match": {"path": trial.path}, "route": action}


def _header(name: str, value: str) -> dict[str, Any]:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _route(backend: Backend, timeout: float, headers: Mapping[str, str], removed: Sequence[str]) -> dict[str, Any]:
    match = [{"name": name, "string_match": {"exact": value}} for name, value in headers.items()]
    paths = [re.escape(path).removesuffix(r"\*") + (".*" if path.endswith("/*") else "") for path in backend.public]
    return {
        # Of the whole path. Envoy answers others with 404.
        "match": {"safe_regex": {"regex": "|".join(paths)}, "headers": match},
        "route": {
            "cluster": backend.name,
            "timeout": f"{timeout:g}s",
            # Safe for any request: these say that the replica has not seen it. One whose connection broke later may
            # have been scored and logged, which the next replica finds out, or only its client may decide.
            "retry_policy": {
                "retry_on": _NOT_SENT + (",reset" if backend.refuses_repeats else ""),
                "num_retries": 3,
                "retry_host_predicate": [
                    {
                        "name": "envoy.retry_host_predicates.previous_hosts",
                        "typed_config": typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
                    }
                ],
                "host_selection_retry_max_attempts": 5,
            },
        },
        # One value for all attempts of a request.
        "request_headers_to_add": [_header(TOKEN.decode(), "%UNIQUE_ID%")],
        "request_headers_to_remove": list(removed),
        "response_headers_to_add": [_header(DEPLOYMENT_HEADER, backend.name)],
    }
