"""A Kubernetes cluster in one process, whose Deployments have processes of this machine as pods.

It is a stand-in, with the parts of the API (server-side apply too), of its controllers and of a kubelet that a
deployment of a model meets.
Manifests are judged by the schemas of Kubernetes. Each pod has an address of its own on loopback. Seconds of probes and
of the sleep before a stop are a tenth as long as they say.
"""

import base64
import copy
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import psutil
import yaml

from dagster_mlops.k8s.validation import is_label_value
from tests.support.http_servers import QuietHandler, QuietServer, serving

_PACE = 0.1
_VERSION = "1.34"
_GROUPS = {
    "configmaps": "",
    "deployments": "apps",
    "endpointslices": "discovery.k8s.io",
    "horizontalpodautoscalers": "autoscaling",
    "poddisruptionbudgets": "policy",
    "pods": "",
    "secrets": "",
    "services": "",
}
SERVER = Path(__file__).with_name("small_server.py")


class RefusalError(Exception):
    """A refusal of the API server, as a ``Status``."""

    def __init__(self, code: int, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status = {"kind": "Status", "status": "Failure", "code": code, "message": message, "details": details}


class Pod:
    """The process of a pod, and what a kubelet knows of it."""

    def __init__(self, ip: str, log: Path) -> None:
        self.ip, self.log = ip, log
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts, self.next_start, self.pulls = 0, 0.0, 0
        self.last_end: dict[str, Any] | None = None
        self.waiting: dict[str, str] = {"reason": "ContainerCreating"}
        self.next_probe, self.is_ready, self.is_ending = 0.0, False, False


class ModelCluster(QuietServer):
    """Objects by collection, namespace and name.

    Args:
        images: Commands by image; an image without one cannot be pulled.
        rules: Rules of a Role that clients have; all is allowed without.
    """

    def __init__(
        self, folder: Path, images: Mapping[str, Sequence[str]], rules: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        super().__init__(_Handler)
        self.folder, self.images, self.rules = folder, dict(images), rules
        self.namespaces, self.quota, self.gpus = {"ml"}, 100, 0
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.owners: dict[tuple[str, str, str], dict[tuple[str, ...], set[str]]] = {}
        self.pods: dict[str, Pod] = {}
        self.lock, self.is_over, self.is_deaf = threading.RLock(), threading.Event(), False
        self.calls: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda verb, resource: None
        self._version, self._addresses = 0, 0
        self._network = f"{secrets.randbelow(250) + 1}.{secrets.randbelow(250) + 1}"  # others test at the same time
        self.kubeconfig = folder / "kubeconfig"
        self._write_kubeconfig({"server": self.url})

    def _write_kubeconfig(self, cluster: Mapping[str, str]) -> None:
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "c", "cluster": dict(cluster)}],
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {"token": "t0ken"}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(content))

    def encrypt(self, certificate: str, key: str) -> None:
        """Answer by TLS from here on, with a certificate of ``localhost``."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        address = f"https://localhost:{self.server_port}"
        self._write_kubeconfig({"server": address, "certificate-authority": certificate})

    # --- the API

    def names(self, collection: str) -> list[str]:
        """The objects of a collection."""
        with self.lock:
            return sorted(name for kind, _, name in self.objects if kind == collection)

    def get(self, collection: str, name: str) -> dict[str, Any]:
        """A copy of an object of namespace ml."""
        with self.lock:
            return copy.deepcopy(self.objects[collection, "ml", name])

    def edit(self, collection: str, name: str, path: Sequence[str], value: Any, manager: str = "kubectl-edit") -> None:
        """What `kubectl edit` does to one field."""
        with self.lock:
            key = (collection, "ml", name)
            _set(self.objects[key], path, value)
            self.owners[key][tuple(path)] = {manager}
            self._changed(key, spec=path[0] == "spec")

    def apply(self, key: tuple[str, str, str], manifest: dict[str, Any], query: Mapping[str, str]) -> dict[str, Any]:
        """Server-side apply, with fields that are lists or a Service's selector taken as one."""
        collection, namespace, name = key
        if namespace not in self.namespaces:
            raise RefusalError(404, f'namespaces "{namespace}" not found', kind="namespaces", name=namespace)
        self._validate(manifest, name)
        manager, force = query["fieldManager"], query.get("force") == "true"
        current, owners = self.objects.get(key), self.owners.get(key, {})
        version = manifest["metadata"].pop("resourceVersion", None)
        if version is not None and (current is None or current["metadata"]["resourceVersion"] != version):
            raise RefusalError(409, "Operation cannot be fulfilled: the object has been modified")
        leaves = dict(_leaves(manifest, atomic=(("spec", "selector"),) if collection == "services" else ()))
        result = copy.deepcopy(current) if current else {"metadata": {}}
        conflicts = []
        for path, value in leaves.items():
            managers = owners.get(path, set()) - {manager}
            if current and managers and _at(current, path) != value and not force:
                by = ", ".join(sorted(managers))
                field = f".{'.'.join(path)}"
                conflicts.append({"reason": "FieldManagerConflict", "field": field, "message": f'conflict with "{by}"'})
        if conflicts:
            raise RefusalError(409, f"Apply failed with {len(conflicts)} conflict(s)", causes=conflicts)
        if query.get("dryRun"):
            return result
        for path in [p for p, by in owners.items() if by == {manager} and p not in leaves]:
            _remove(result, path)
            del owners[path]
        for path, value in leaves.items():
            by = owners.get(path, set())
            owners[path] = by | {manager} if current and _at(current, path) == value else {manager}
            _set(result, path, value)
        if collection == "deployments":
            result["spec"].setdefault("replicas", 1)
        if result != current:
            is_other = (current or {}).get("spec") != result.get("spec")
            self.objects[key], self.owners[key] = result, owners
            self._changed(key, spec=is_other)
        return self.objects[key]

    def _validate(self, manifest: dict[str, Any], name: str) -> None:
        try:
            kubernetes_validate.validate(manifest, _VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            path = ".".join(map(str, error.path))
            raise RefusalError(422, f"{manifest['kind']} {name}: {path}: {error.message}") from error
        for key, text in manifest["metadata"].get("labels", {}).items():
            if not is_label_value(text):
                raise RefusalError(422, f"metadata.labels.{key}: {text!r}")

    def _changed(self, key: tuple[str, str, str], *, spec: bool = False) -> None:
        self._version += 1
        metadata = self.objects[key]["metadata"]
        metadata["resourceVersion"] = str(self._version)
        metadata.setdefault("creationTimestamp", _now())
        metadata["generation"] = metadata.get("generation", 0) + spec

    def delete(self, key: tuple[str, str, str]) -> None:
        """Delete an object; the pods of a Deployment end as a kubelet ends them."""
        self.objects.pop(key)
        self.owners.pop(key, None)
        if key[0] == "deployments":
            for name, pod in self._pods_of(key[2]):
                self._end(name, pod)

    def allowed(self, verb: str, resource: str) -> bool:
        """True if a rule of the clients' Role has the verb."""
        collection = resource.partition("/")[0]
        return self.rules is None or any(
            _GROUPS[collection] in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self.rules
        )

    def slices(self, service: str) -> list[dict[str, Any]]:
        """The EndpointSlice of a Service."""
        selector = self.objects["services", "ml", service]["spec"]["selector"]
        ends = [
            {
                "addresses": [self.pods[name].ip],
                "targetRef": {"kind": "Pod", "name": name},
                "conditions": {"ready": self._is_ready(name)},
            }
            for (kind, _, name), pod in self.objects.items()
            if kind == "pods" and selector.items() <= pod["metadata"]["labels"].items()
        ]
        return [{"metadata": {"name": f"{service}-1"}, "endpoints": ends}]

    def address(self, service: str) -> str:
        """The address of a pod that the Service leads to.

        Raises:
            ConnectionError: It leads to no pod.
        """
        with self.lock:
            if ("services", "ml", service) not in self.objects:
                raise ConnectionError(f"there is no Service {service}")
            ends = [end for end in self.slices(service)[0]["endpoints"] if end["conditions"]["ready"]]
        if not ends:
            raise ConnectionError(f"{service} has no endpoints")
        return f"http://{secrets.choice(ends)['addresses'][0]}:3000"

    def ask(self, service: str, x: float = 1.0, **options: Any) -> httpx.Response:
        """A request of a client, who reaches the Service by the network of the cluster."""
        return httpx.post(
            f"{self.address(service)}/predict", json={"rows": [{"x": x}]}, timeout=30, trust_env=False, **options
        )

    # --- controllers and kubelet

    def run(self) -> None:
        """Reconcile until the cluster is over."""
        while not self.is_over.wait(0.05):
            with self.lock:
                for kind, _, name in list(self.objects):
                    if kind == "deployments":
                        self._reconcile(name)
                for kind, _, name in list(self.objects):
                    if kind == "pods" and not self.pods[name].is_ending:
                        self._care_for(name)

    def _pods_of(self, deployment: str) -> list[tuple[str, Pod]]:
        return [
            (name, self.pods[name])
            for (kind, _, name), pod in self.objects.items()
            if kind == "pods" and pod["metadata"]["labels"]["dagster-mlops/deployment"] == deployment
        ]

    def _is_ready(self, name: str) -> bool:
        return self.pods[name].is_ready and not self.pods[name].is_ending

    def _reconcile(self, name: str) -> None:
        deployment = self.objects["deployments", "ml", name]
        spec, template = deployment["spec"], json.dumps(deployment["spec"]["template"], sort_keys=True)
        if autoscaler := self.objects.get(("horizontalpodautoscalers", "ml", name)):
            spec["replicas"] = max(spec["replicas"], autoscaler["spec"]["minReplicas"])
        pods = [(each, pod) for each, pod in self._pods_of(name) if not pod.is_ending]
        new = [each for each, _ in pods if self.objects["pods", "ml", each]["template"] == template]
        conditions = []
        for _ in range(spec["replicas"] - len(new)):
            if sum(kind == "pods" for kind, _, _ in self.objects) >= self.quota:
                message = f'pods "{name}" is forbidden: exceeded quota: team, limited: pods={self.quota}'
                condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
                conditions.append(condition)
                break
            new.append(self._create(name, spec["template"], template))
        old = [each for each, _ in pods if each not in new]
        surplus = new[spec["replicas"] :]
        if sum(map(self._is_ready, new)) >= spec["replicas"]:
            surplus += old
        for each in surplus:
            self._end(each, self.pods[each])
        ready = [each for each in new if self._is_ready(each)]
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(self._pods_of(name)),
            "updatedReplicas": len(new),
            "readyReplicas": len(ready),
            "availableReplicas": len(ready),
            "conditions": conditions,
        }

    def _create(self, deployment: str, template: Mapping[str, Any], text: str) -> str:
        name = f"{deployment}-{secrets.token_hex(4)}"
        self._addresses += 1
        pod = copy.deepcopy(dict(template))
        pod["metadata"] |= {"name": name, "namespace": "ml", "creationTimestamp": _now()}
        self.objects["pods", "ml", name] = {**pod, "template": text, "status": {"phase": "Pending"}}
        ip = f"127.{self._network}.{self._addresses % 250 + 1}"
        self.pods[name] = Pod(ip, self.folder / f"{name}.log")
        return name

    def _care_for(self, name: str) -> None:
        pod, manifest = self.pods[name], self.objects["pods", "ml", name]
        [container, *_] = manifest["spec"]["containers"]
        conditions = [{"type": "PodScheduled", "status": "True"}]
        if not self._has_node(name, container):
            message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
            conditions = [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message},
                {"type": "Ready", "status": "False"},
            ]
            manifest["status"] = {"phase": "Pending", "conditions": conditions}
            return
        if pod.process is None:
            if time.monotonic() >= pod.next_start:
                self._start(pod, manifest, container)
        elif (code := pod.process.poll()) is not None:
            self._ended(pod, {"exitCode": 128 - code if code < 0 else code, "reason": "Error"})
        elif _bytes(pod.process.pid) > _limit(container):
            _kill(pod.process)
            self._ended(pod, {"exitCode": 137, "reason": "OOMKilled"})
        elif time.monotonic() >= pod.next_probe:
            probe = container["readinessProbe"]
            pod.is_ready = _answers(f"http://{pod.ip}:3000{probe['httpGet']['path']}")
            pod.next_probe = time.monotonic() + _PACE * (probe["periodSeconds"] if pod.is_ready else 2)
        state = {"running": {"startedAt": _now()}} if pod.process else {"waiting": pod.waiting}
        status = {"name": container["name"], "image": container["image"], "restartCount": pod.restarts, "state": state}
        if pod.last_end:
            status["lastState"] = {"terminated": pod.last_end}
        conditions.append({"type": "Ready", "status": str(pod.is_ready)})
        manifest["status"] = {
            "phase": "Running" if pod.process else "Pending",
            "podIP": pod.ip,
            "conditions": conditions,
            "containerStatuses": [status],
        }

    def _has_node(self, name: str, container: Mapping[str, Any]) -> bool:
        count = int(container.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0))
        return count <= self.gpus

    def _start(self, pod: Pod, manifest: Mapping[str, Any], container: Mapping[str, Any]) -> None:
        command = self.images.get(container["image"])
        if command is None:
            pod.pulls += 1
            reason = "ErrImagePull" if pod.pulls == 1 else "ImagePullBackOff"
            pod.waiting = {"reason": reason, "message": f"{container['image']}: not found"}
            pod.next_start = time.monotonic() + 0.2
            return
        try:
            variables = {each["name"]: self._value(each) for each in container["env"]}
        except KeyError as error:
            pod.waiting = {"reason": "CreateContainerConfigError", "message": f"secret not found: {error}"}
            return
        with pod.log.open("ab") as log:
            pod.process = subprocess.Popen(
                [word.replace("{ip}", pod.ip) for word in command],
                env={
                    "PATH": os.environ["PATH"],
                    "POD_IP": pod.ip,
                    "PYTHONPATH": os.pathsep.join(sys.path),
                    **variables,
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _value(self, variable: Mapping[str, Any]) -> str:
        if "value" in variable:
            return variable["value"]
        reference = variable["valueFrom"]["secretKeyRef"]
        return base64.b64decode(self.objects["secrets", "ml", reference["name"]]["data"][reference["key"]]).decode()

    def _ended(self, pod: Pod, end: dict[str, Any]) -> None:
        pod.process, pod.is_ready, pod.last_end = None, False, end
        pod.restarts += 1
        pod.waiting = {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}
        pod.next_start = time.monotonic() + min(0.2 * 2**pod.restarts, 5)

    def _end(self, name: str, pod: Pod) -> None:
        """Out of the Service at once; SIGTERM after the sleep, SIGKILL after the grace period."""
        if pod.is_ending:
            return
        pod.is_ending = True
        manifest = self.objects["pods", "ml", name]
        manifest["metadata"]["deletionTimestamp"] = _now()
        threading.Thread(target=self._end_process, args=(name, pod, manifest["spec"]), daemon=True).start()

    def _end_process(self, name: str, pod: Pod, spec: Mapping[str, Any]) -> None:
        sleep = spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        time.sleep(_PACE * sleep.get("seconds", 0))
        if pod.process:
            with suppress(ProcessLookupError):
                os.killpg(pod.process.pid, signal.SIGTERM)
            try:
                pod.process.wait(spec["terminationGracePeriodSeconds"])
            except subprocess.TimeoutExpired:
                _kill(pod.process)
        with self.lock:
            self.objects.pop(("pods", "ml", name), None)

    def stop(self) -> None:
        """End every process."""
        self.is_over.set()
        for pod in self.pods.values():
            if pod.process:
                _kill(pod.process)


class _Handler(QuietHandler):
    server: ModelCluster  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PATCH = do_DELETE = do_GET

    def _handle(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        try:
            code, content = self._answer(body)
        except RefusalError as error:
            code, content = error.code, json.dumps(error.status).encode()
        if code == 0:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(code)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, body: bytes) -> tuple[int, bytes]:
        cluster, url = self.server, httpx.URL(self.path)
        if cluster.is_deaf:
            return 0, b""
        if (self.headers.get("authorization") or "").lower() != "bearer t0ken":
            raise RefusalError(401, "Unauthorized")
        parts = url.path.strip("/").split("/")
        _, _, *rest = parts[parts.index("namespaces") :]
        namespace = parts[parts.index("namespaces") + 1]
        collection, name, *below = [*rest, ""]
        if below and not below[-1]:
            below.pop()
        verb = {"GET": "get" if name else "list", "PATCH": "patch", "DELETE": "delete", "POST": "create"}[self.command]
        resource = f"{collection}/{below[0]}" if below else collection
        key = (collection, namespace, name)
        cluster.before(verb, resource)
        cluster.calls.append((verb, resource))
        verbs = [verb, *(["create"] if verb == "patch" and not below and key not in cluster.objects else [])]
        for each in verbs:
            if not cluster.allowed(each, resource):
                group = _GROUPS[collection]
                raise RefusalError(
                    403, f'{resource} is forbidden: User "u" cannot {each} resource "{resource}" in API group "{group}"'
                )
        if below[:1] == ["proxy"]:
            return self._proxy(collection, name.partition(":")[0], "/".join(below[1:]), body)
        with cluster.lock:
            if below == ["log"]:
                return 200, cluster.pods[name].log.read_bytes()
            return 200, json.dumps(self._object(verb, key, below, dict(url.params), body)).encode()

    def _object(
        self, verb: str, key: tuple[str, str, str], below: list[str], query: Mapping[str, str], body: bytes
    ) -> Any:
        cluster, (collection, namespace, name) = self.server, key
        if verb == "list":
            labels = dict(pair.split("=", 1) for pair in query["labelSelector"].split(","))
            if collection == "endpointslices":
                return {"items": cluster.slices(labels["kubernetes.io/service-name"])}
            return {
                "items": [
                    each
                    for (kind, space, _), each in cluster.objects.items()
                    if (kind, space) == (collection, namespace)
                    and labels.items() <= each["metadata"].get("labels", {}).items()
                ]
            }
        if verb == "patch" and not below:
            return cluster.apply(key, json.loads(body), query)
        if key not in cluster.objects:
            raise RefusalError(404, f'{collection} "{name}" not found', kind=collection, name=name)
        if below == ["scale"]:
            cluster.objects[key]["spec"]["replicas"] = json.loads(body)["spec"]["replicas"]
            cluster.owners[key][("spec", "replicas")] = {"scale"}
            return {}
        if verb == "delete":
            cluster.delete(key)
            return {"kind": "Status", "status": "Success"}
        return cluster.objects[key]

    def _proxy(self, collection: str, name: str, path: str, body: bytes) -> tuple[int, bytes]:
        cluster = self.server
        try:
            base = cluster.address(name) if collection == "services" else f"http://{cluster.pods[name].ip}:3000"
            headers = {key: text for key, text in self.headers.items() if key.lower() in ("x-probe", "content-type")}
            response = httpx.request(
                self.command, f"{base}/{path}", content=body, headers=headers, timeout=30, trust_env=False
            )
        except (httpx.TransportError, ConnectionError) as error:
            raise RefusalError(503, str(error)) from error
        return response.status_code, response.content


def _leaves(value: Any, path: tuple[str, ...] = (), *, atomic: Sequence[tuple[str, ...]]) -> Iterator[Any]:
    if isinstance(value, Mapping) and value and path not in atomic:
        for key, below in value.items():
            yield from _leaves(below, (*path, key), atomic=atomic)
    else:
        yield path, value


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _set(value: dict[str, Any], path: Sequence[str], leaf: Any) -> None:
    for key in path[:-1]:
        value = value.setdefault(key, {})
    value[path[-1]] = copy.deepcopy(leaf)


def _remove(value: dict[str, Any], path: Sequence[str]) -> None:
    for key in path[:-1]:
        value = value.get(key, {})
    value.pop(path[-1], None)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _bytes(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, which may be in sessions of their own."""
    with suppress(psutil.NoSuchProcess):
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait(20)


def _limit(container: Mapping[str, Any]) -> float:
    text = container.get("resources", {}).get("limits", {}).get("memory")
    return float(text.removesuffix("Mi")) * 2**20 if text else float("inf")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def model_cluster(
    folder: Path, images: Mapping[str, Sequence[str]], rules: Sequence[Mapping[str, Any]] | None = None
) -> Iterator[ModelCluster]:
    """A cluster on loopback; its pods do not outlive it."""
    folder.mkdir(parents=True, exist_ok=True)
    with serving(ModelCluster(folder, images, rules)) as cluster:
        thread = threading.Thread(target=cluster.run, daemon=True)
        thread.start()
        try:
            yield cluster
        finally:
            cluster.is_over.set()
            thread.join(10)
            cluster.stop()
