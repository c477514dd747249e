"""The document of Envoy's public listener: its address, TLS, and the limits that each client meets.

Envoy puts a changed listener in the place of the one before without closing the port, and ends that one's connections
after their next answer: https://www.envoyproxy.io/docs/envoy/latest/configuration/listeners/lds
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from dagster_mlops.serving.local.access import Access
from dagster_mlops.serving.local.envoy_config import TOKENS, address, typed, watched

_CERTIFICATE = "public"


def listener(state_dir: Path, port: int, access: Access) -> str:
    """The document of the listener, named after its address; see :func:`version`."""
    request_id = typed("extensions.request_id.uuid.v3.UuidRequestIdConfig", pack_trace_reason=False)
    router = typed("extensions.filters.http.router.v3.Router")
    # Without a rule of the routes, no one may pass.
    rules = typed("extensions.filters.http.rbac.v3.RBAC", rules={"action": "ALLOW"})
    guards = [{"name": TOKENS, "typed_config": rules}] if access.is_guarded else []
    guards.append({"name": "envoy.filters.http.match_delegate", "typed_config": _buffer(access.request_bytes)})
    too_large = f"the body has more than {access.request_bytes:,} bytes"
    manager = typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="public",
        rds={"route_config_name": "live", "config_source": watched(state_dir, "rds.json")},
        # Each client is a stranger, on loopback, too: Envoy removes the x-envoy-* headers by which one could set
        # timeouts and retries.
        use_remote_address=True,
        internal_address_config={"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
        # A request id that the caller chose is the one that is logged and traced: keep it, bit for bit.
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        request_id_extension={"typed_config": request_id},
        # A client that opens connections and sends little, or slowly, is not to keep others out.
        request_headers_timeout="10s",
        request_timeout="60s",
        common_http_protocol_options={"idle_timeout": "60s", "max_headers_count": 100},
        max_request_headers_kb=32,
        # The path that is public here is to be the one that the server sees.
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        http_filters=[*guards, {"name": "envoy.filters.http.router", "typed_config": router}],
        # Envoy's own answer to a request that its rules refuse is 403, and names the rules.
        local_reply_config={
            "mappers": [
                {
                    **_reply(403, "a valid token is required: Authorization: Bearer ..."),
                    "status_code": 401,
                    "headers_to_add": [{"header": {"key": "www-authenticate", "value": "Bearer"}}],
                },
                _reply(413, too_large),
            ]
        },
    )
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    listener = typed(
        "config.listener.v3.Listener",
        name=f"{access.host}:{port}",
        address=address(port, access.host),
        # Otherwise a second Envoy could bind the same port and silently take a share of the traffic.
        enable_reuse_port=False,
        filter_chains=[{"filters": filters, **(_tls(state_dir) if access.certificate else {})}],
    )
    version = hashlib.sha256(json.dumps(listener).encode()).hexdigest()[:12]
    return json.dumps({"version_info": version, "resources": [listener]}, indent=1)


def version(document: str) -> str:
    """The version of a document of :func:`listener`, by which Envoy names what it has."""
    return json.loads(document)["version_info"]


def ports(document: str) -> list[int]:
    """The ports of a document of :func:`listener`."""
    return [each["address"]["socket_address"]["port_value"] for each in json.loads(document)["resources"]]


def secret(certificate: str, key: str) -> str:
    """The document of the certificate and its key, which change together."""
    pair = {"certificate_chain": {"inline_string": certificate}, "private_key": {"inline_string": key}}
    kind = "extensions.transport_sockets.tls.v3.Secret"
    return json.dumps({"resources": [typed(kind, name=_CERTIFICATE, tls_certificate=pair)]}, indent=1)


def certificate_of(document: str) -> str:
    """The certificate in a document of :func:`secret`."""
    return json.loads(document)["resources"][0]["tls_certificate"]["certificate_chain"]["inline_string"]


def _tls(state_dir: Path) -> dict[str, Any]:
    secret = {"name": _CERTIFICATE, "sds_config": watched(state_dir, "sds.json")}
    context = typed(
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "alpn_protocols": ["http/1.1"],
            "tls_certificate_sds_secret_configs": [secret],
        },
    )
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}


def _buffer(size: int) -> dict[str, Any]:
    """A filter that counts a body of undeclared size before a server gets any of it; others are streamed."""
    declared = {
        "single_predicate": {
            "input": {
                "name": "length",
                "typed_config": typed("type.matcher.v3.HttpRequestHeaderMatchInput", header_name="content-length"),
            },
            "value_match": {"safe_regex": {"google_re2": {}, "regex": ".+"}},
        }
    }
    skip = {"name": "skip", "typed_config": typed("extensions.filters.common.matcher.action.v3.SkipFilter")}
    return typed(
        "extensions.common.matching.v3.ExtensionWithMatcher",
        xds_matcher={"matcher_list": {"matchers": [{"predicate": declared, "on_match": {"action": skip}}]}},
        extension_config={
            "name": "envoy.filters.http.buffer",
            "typed_config": typed("extensions.filters.http.buffer.v3.Buffer", max_request_bytes=size),
        },
    )


def _reply(status: int, error: str) -> dict[str, Any]:
    """The text of Envoy's own answers of a status."""
    value = {"default_value": status, "runtime_key": "dagster_mlops.status"}
    text = {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}, "content_type": "application/json"}
    return {
        "filter": {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}},
        "body": {"inline_string": json.dumps({"error": error})},
        "body_format_override": text,
    }
