"""Objects of one namespace: read, applied by the server, deleted; and requests to its pods."""

import json
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from dagster_mlops.core.extras import extra
from dagster_mlops.errors import DeploymentError, UnreachableClusterError
from dagster_mlops.k8s.serving.manifests import MANAGER, PORT
from dagster_mlops.provenance import mask_credentials

if TYPE_CHECKING:
    import httpx
    from kubernetes.client import ApiClient

# Path of the API and name of the collection, by kind.
_KINDS = {
    "ConfigMap": ("/api/v1", "configmaps"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "EndpointSlice": ("/apis/discovery.k8s.io/v1", "endpointslices"),
    "HorizontalPodAutoscaler": ("/apis/autoscaling/v2", "horizontalpodautoscalers"),
    "Pod": ("/api/v1", "pods"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "Secret": ("/api/v1", "secrets"),
    "Service": ("/api/v1", "services"),
}
_SECONDS, _CONNECT_SECONDS = 30, 5  # for an answer of the API server, and for a connection


class Cluster:
    """One namespace of a cluster, with the address and the credentials of Kubernetes' own client; closed by `with`."""

    def __init__(self, api: "ApiClient", namespace: str, *, pods_by: Literal["api", "network"] = "api") -> None:
        self.namespace = namespace
        self._api, self._pods_by = api, pods_by
        self._http = self._client(api.configuration.host, _SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """An object; None where there is none."""
        text = self._call("GET", self._path(kind, name), what=f"{kind} {name}", none_for=404)
        return json.loads(text) if text else None

    def find(self, kind: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """The objects that have all of the labels."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        text = self._call("GET", self._path(kind), {"labelSelector": selector}, what=f"{kind}s")
        return json.loads(text or "{}").get("items") or []

    def apply(self, manifest: Mapping[str, Any], *, force: bool = False, dry_run: bool = False) -> bool:
        """Create or change an object by server-side apply: fields that the manifest does not name stay as they are.

        False if the manifest names an older version of the object than the current one.

        Args:
            force: Take over fields that someone else has set.
            dry_run: Let the API server judge the manifest, and change nothing.

        Raises:
            DeploymentError: Someone else has set a field, or the API server refuses the manifest.
        """
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict", "force": str(force).lower()}
        query |= {"dryRun": "All"} if dry_run else {}
        text = self._call("PATCH", self._path(kind, name), query, body=manifest, what=f"{kind} {name}", none_for=409)
        return text is not None

    def scale(self, deployment: str, replicas: int) -> None:
        """Set the number of pods, which is an autoscaler's from then on."""
        path = f"{self._path('Deployment', deployment)}/scale"
        body = {"spec": {"replicas": replicas}}
        self._call("PATCH", path, body=body, what=f"Deployment {deployment}", content="application/merge-patch+json")

    def delete(self, kind: str, name: str) -> bool:
        """Delete an object and what belongs to it; False where there is none."""
        query = {"propagationPolicy": "Background"}
        return self._call("DELETE", self._path(kind, name), query, what=f"{kind} {name}", none_for=404) is not None

    def log(self, pod: str, container: str, *, previous: bool = False, lines: int = 15) -> str:
        """The end of a container's log, to be put into an error; of the one before its last start if `previous`."""
        query = {"container": container, "tailLines": str(lines), "previous": str(previous).lower()}
        try:
            text = self._call("GET", f"{self._path('Pod', pod)}/log", query, what=f"the log of {pod}")
        except DeploymentError as error:
            return f"({error})"
        return mask_credentials((text or "").strip()) or "(no log)"

    def pod_url(self, pod: Mapping[str, Any], port: int) -> str:
        """The address of a pod's server, for :meth:`http_client`."""
        if self._pods_by == "network":
            return f"http://{pod['status']['podIP']}:{port}"
        return f"{self._api.configuration.host}{self._path('Pod', pod['metadata']['name'])}:{port}/proxy"

    def service_url(self, name: str, port: int) -> str:
        """The address of a Service, for :meth:`http_client`."""
        if self._pods_by == "network":
            return f"http://{name}.{self.namespace}:{port}"
        return f"{self._api.configuration.host}{self._path('Service', name)}:{PORT}/proxy"

    def http_client(self, url: str, *, timeout: float) -> "httpx.Client":
        """A client for an address in the cluster; it has our credentials only where the API server is asked."""
        if not url.startswith(f"{self._api.configuration.host}/"):
            return extra("httpx").Client(base_url=url, timeout=timeout, trust_env=False)
        return self._client(url, timeout)

    def silence(self, url: str, path: str) -> str:
        """The reason why an address in the cluster does not answer with 200; empty when it does."""
        try:
            with self.http_client(url, timeout=_CONNECT_SECONDS) as client:
                code = client.get(path).status_code
        except extra("httpx").TransportError as error:
            return f"{url} does not answer ({error or type(error).__name__})"
        return "" if code == 200 else f"{url}{path} answers {code}"

    def _client(self, url: str, timeout: float) -> "httpx.Client":
        httpx, configuration = extra("httpx"), self._api.configuration
        verify = ssl.create_default_context(cafile=configuration.ssl_ca_cert) if configuration.verify_ssl else False
        if verify and configuration.cert_file:
            verify.load_cert_chain(configuration.cert_file, configuration.key_file)
        proxy = configuration.proxy or None
        headers = {**self._credentials(), "Accept": "application/json"}
        limits = httpx.Timeout(timeout, connect=_CONNECT_SECONDS)
        return httpx.Client(base_url=url, timeout=limits, headers=headers, verify=verify, proxy=proxy, trust_env=False)

    def _credentials(self) -> dict[str, str]:
        """Headers that say who asks; a token that has run out is renewed."""
        headers: dict[str, str] = {}
        self._api.update_params_for_auth(headers, [], ["BearerToken"])
        return headers

    def _path(self, kind: str, name: str = "") -> str:
        prefix, collection = _KINDS[kind]
        return f"{prefix}/namespaces/{self.namespace}/{collection}{f'/{name}' if name else ''}"

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        what: str,
        body: object = None,
        content: str = "application/apply-patch+yaml",
        none_for: int = 0,
    ) -> str | None:
        """The answer of the API server; None for the status `none_for`. Other refusals are errors with the fix."""
        headers = {**self._credentials(), **({"Content-Type": content} if body is not None else {})}
        data = None if body is None else json.dumps(body)
        errors = extra("httpx")
        try:
            response = self._http.request(method, path, params=dict(query or {}), headers=headers, content=data)
        except errors.TransportError as error:
            raise UnreachableClusterError(
                f"The Kubernetes API at {self._api.configuration.host} does not answer ({error or type(error).__name__}"
                "). Look at the context of KubernetesResource, and at network, VPN and cluster."
            ) from error
        if response.is_success:
            return response.text
        if response.status_code == none_for and not (_names_namespace(response) or _conflicts(response)):
            return None
        raise self._refusal(response, what)

    def _refusal(self, response: "httpx.Response", what: str) -> DeploymentError:
        status, code = _status(response), response.status_code
        message = mask_credentials(str(status.get("message") or response.reason_phrase))
        # A manifest that cannot be merged, such as a variable that is there twice, is a 500, too.
        if code in (429, 502, 503, 504) or (code == 500 and response.request.method == "GET"):
            return UnreachableClusterError(f"The Kubernetes API cannot answer for {what} ({code}): {message}")
        if code == 404 and _names_namespace(response):
            return DeploymentError(
                f"The cluster has no namespace {self.namespace!r}. Run `kubectl create namespace {self.namespace}`, or "
                "correct namespace= or the context."
            )
        if code == 401:
            return DeploymentError(f"The cluster does not know these credentials ({message}). Log in again.")
        if code == 403 and "exceeded quota" in message:
            return DeploymentError(f"{what} is refused: {message}. Raise the quota, or ask for less.")
        if code == 403:
            return DeploymentError(
                f"{what} is refused: {message}. The role that deployments need is in the documentation (Kubernetes as "
                "a target, Rights)."
            )
        if conflicts := _conflicts(response):
            changes = "; ".join(f"{cause.get('field')}: {cause.get('message')}" for cause in conflicts)
            return DeploymentError(
                f"{what} was changed by someone else: {changes}. Undo it there, put the value into the options, or "
                "take it back with KubernetesTarget(force=True)."
            )
        return DeploymentError(f"{what} is refused ({code}): {message}")


def _status(response: "httpx.Response") -> dict[str, Any]:
    """The ``Status`` that the API server sends with a refusal."""
    try:
        status = response.json()
    except ValueError:  # of a proxy on the way
        return {}
    return status if isinstance(status, dict) else {}


def _conflicts(response: "httpx.Response") -> list[dict[str, Any]]:
    """Fields that someone else has set, of a manifest that was applied."""
    causes = (_status(response).get("details") or {}).get("causes") or []
    return [cause for cause in causes if cause.get("reason") == "FieldManagerConflict"]


def _names_namespace(response: "httpx.Response") -> bool:
    return (_status(response).get("details") or {}).get("kind") == "namespaces"
