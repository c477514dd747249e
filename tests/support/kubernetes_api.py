"""As much of a Kubernetes API as dagster-k8s asks for, whose pods are processes of this machine."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from tests.support.http_servers import QuietHandler, QuietServer, serving


class Cluster(QuietServer):
    """Jobs by name: `manifests` as they were sent, `pods` as the processes that run their containers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(_Handler)
        self.folder = folder
        self.manifests: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, subprocess.Popen] = {}
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "clusters": [{"name": "c", "cluster": {"server": self.url}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "users": [{"name": "u", "user": {}}],
                }
            )
        )

    def create(self, manifest: dict[str, Any]) -> None:
        """Start the container of a job's pod; its image is this environment."""
        name = manifest["metadata"]["name"]
        [container] = manifest["spec"]["template"]["spec"]["containers"]
        command = [*(container.get("command") or ()), *(container.get("args") or ())]
        assert command[0] == "dagster", command
        told = {pair["name"]: pair["value"] for pair in container.get("env") or () if "value" in pair}
        with (self.folder / f"{name}.log").open("w") as log:
            self.pods[name] = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", *command],
                env={**os.environ, **told},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.manifests[name] = manifest

    def evict(self, name: str) -> None:
        """What a node that dies does to a pod."""
        with suppress(ProcessLookupError):
            os.killpg(self.pods[name].pid, signal.SIGKILL)
        self.pods[name].wait(20)

    def delete(self, name: str) -> None:
        """What deleting a job does: SIGTERM, and SIGKILL after the grace period."""
        with suppress(ProcessLookupError):
            os.killpg(self.pods[name].pid, signal.SIGTERM)

    def job(self, name: str) -> dict[str, Any]:
        """A job as the API shows it."""
        code = self.pods[name].poll()
        status = {"active": 1} if code is None else {"succeeded": 1} if code == 0 else {"failed": 1}
        return {**self.manifests[name], "status": status}


class _Handler(QuietHandler):
    server: Cluster  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        manifest = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.create(manifest)
        self._answer(manifest)

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if "jobs" in parts:
            name = parts[parts.index("jobs") + 1]
            known = name in self.server.pods
            self._answer(self.server.job(name) if known else _missing(name), 200 if known else 404)
        else:
            self._answer({"apiVersion": "v1", "kind": "PodList", "items": []})

    def do_DELETE(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.server.delete(name)
        self._answer({"apiVersion": "v1", "kind": "Status", "status": "Success"})

    def _answer(self, body: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _missing(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound", "details": {"name": name}}


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster on loopback; its pods do not outlive it."""
    with serving(Cluster(folder)) as found:
        try:
            yield found
        finally:
            for name in found.pods:
                found.evict(name)
