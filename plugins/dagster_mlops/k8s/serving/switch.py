"""The Service of a deployment's name as the switch of its traffic, and the rollout whose turn it is to move it."""

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError, UnreachableClusterError
from dagster_mlops.k8s.serving.cluster import Cluster
from dagster_mlops.k8s.serving.manifests import DEPLOYMENT, NAME, NO_DEPLOYMENT, TURN

_PAUSE = 0.5  # seconds between looks at the cluster
_STALE_SECONDS = 10  # for a write that no other one comes before
_SERVICE_SECONDS = 60  # for the Service to know its pods, which takes a second or two


class Switch:
    """Of several rollouts of one name, the last one to begin may move the selector; the others find that out.

    Args:
        manifest: Makes the manifest of the Service from a selector and the mark of a rollout.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        manifest: Callable[[Mapping[str, str], str], dict[str, Any]],
        *,
        force: bool = False,
    ) -> None:
        self._cluster, self._name, self._manifest, self._force = cluster, name, manifest, force
        self._turn, service = secrets.token_hex(8), cluster.get("Service", name)
        self._turn_before = _turn(service)
        self.selector = _selector(service) or {NAME: name, DEPLOYMENT: NO_DEPLOYMENT}
        """Where the traffic went at first."""

    @property
    def deployment(self) -> str:
        """The deployment that the traffic went to at first; empty where it was none of this name."""
        name = self.selector.get(DEPLOYMENT, NO_DEPLOYMENT)
        return "" if name == NO_DEPLOYMENT else name

    def check(self, selector: Mapping[str, str]) -> None:
        """Let the API server judge the Service with a selector, and change nothing."""
        self._cluster.apply(self._manifest(selector, self._turn), force=self._force, dry_run=True)

    def take_turn(self) -> None:
        """Mark the Service as this rollout's; make it if it is not there.

        Raises:
            DeploymentError: Another rollout has begun since this one looked, or has moved the traffic.
        """

        def refuse(service: Mapping[str, Any] | None) -> None:
            if _turn(service) != self._turn_before or (_selector(service) or self.selector) != self.selector:
                raise self._lost()

        self._write(self.selector, refuse)

    def move(self, selector: Mapping[str, str]) -> None:
        """Send the traffic where `selector` points.

        Raises:
            DeploymentError: Another rollout has begun since.
        """
        self._write(selector, self._refuse_lost_turn)

    def move_back(self, selector: Mapping[str, str]) -> bool:
        """Send the traffic where it went at first, if it goes where `selector` points; False if it does not.

        Raises:
            DeploymentError: Another rollout has begun since.
        """
        service = self._cluster.get("Service", self._name)
        self._refuse_lost_turn(service)
        if _selector(service) != selector:
            return False
        self.move(self.selector)
        return True

    def remove_if_first(self) -> None:
        """Delete a Service that this rollout has made: it would be an address where no one answers."""
        if self.selector.get(DEPLOYMENT) == NO_DEPLOYMENT:
            self._cluster.delete("Service", self._name)

    def await_answer(self, selector: Mapping[str, str], path: str, port: int) -> None:
        """Wait until the Service leads to pods with the labels of `selector` only, and answers on `path`.

        Raises:
            DeploymentError: It does not.
        """
        url = self._cluster.service_url(self._name, port)

        def problem() -> str:
            try:
                pods = {pod["metadata"]["name"] for pod in self._cluster.find("Pod", selector)}
                slices = self._cluster.find("EndpointSlice", {"kubernetes.io/service-name": self._name})
            except UnreachableClusterError as error:
                return str(error)
            ends = [
                (end.get("targetRef") or {}).get("name", "")
                for each in slices
                for end in each.get("endpoints") or []
                if (end.get("conditions") or {}).get("ready") is not False
            ]
            if not ends or not set(ends) <= pods:
                return f"it leads to {', '.join(sorted(ends)) or 'no pod'}"
            return self._cluster.silence(url, path)

        wait_while(
            problem,
            timeout=_SERVICE_SECONDS,
            pause=_PAUSE,
            error=lambda problem: DeploymentError(
                f"The new pods are ready, but Service {self._name} does not answer with them after "
                f"{_SERVICE_SECONDS} s: {problem}. Look at its port, and at network policies."
            ),
        )

    def _write(self, selector: Mapping[str, str], refuse: Callable[[Mapping[str, Any] | None], None]) -> None:
        def is_stale() -> bool:
            service = self._cluster.get("Service", self._name)
            refuse(service)
            manifest = self._manifest(selector, self._turn)
            if service:
                # Anyone who writes the Service in between changes this version, and it is read once more.
                manifest["metadata"]["resourceVersion"] = service["metadata"]["resourceVersion"]
            return not self._cluster.apply(manifest, force=self._force)

        wait_while(
            is_stale,
            timeout=_STALE_SECONDS,
            error=lambda _: DeploymentError(f"Service {self._name} is written by someone else without a pause."),
        )

    def _refuse_lost_turn(self, service: Mapping[str, Any] | None) -> None:
        if _turn(service) != self._turn:
            raise self._lost()

    def _lost(self) -> DeploymentError:
        return DeploymentError(
            f"Another rollout of {self._name!r} has begun, or its Service was deleted: this one moves no traffic. Let "
            "the other one end, then materialize the deployment again."
        )


def _turn(service: Mapping[str, Any] | None) -> str:
    return (((service or {}).get("metadata") or {}).get("annotations") or {}).get(TURN, "")


def _selector(service: Mapping[str, Any] | None) -> dict[str, str]:
    return ((service or {}).get("spec") or {}).get("selector") or {}
