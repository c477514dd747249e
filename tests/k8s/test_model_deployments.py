"""Model deployments in a stand-in for a cluster: pods are real processes, clients ask through the Service."""

import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
import yaml

from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.k8s import GpuProfile, KubernetesResource, KubernetesTarget
from dagster_mlops.k8s.serving.cluster import Cluster
from dagster_mlops.k8s.serving.manifests import Release
from dagster_mlops.k8s.serving.rollout import Live, Plan, rollout
from dagster_mlops.k8s.tool import K8sTool
from dagster_mlops.provenance import Deployment, Package, Record, Ref
from tests.support.certificates import certificate
from tests.support.model_cluster import SERVER, ModelCluster, model_cluster
from tests.support.small_packages import SmallPackages

pytestmark = pytest.mark.thorough

PAGE = Path(__file__).parents[2] / "docs" / "kubernetes_serving.md"
IMAGES = {f"small:{version}": [sys.executable, str(SERVER), "3000", version] for version in ("1", "2", "3")}
IMAGES |= {
    "small:wrong": [sys.executable, str(SERVER), "3000", "7"],
    "small:crash": [sys.executable, "-c", "print('no such model', flush=True); raise SystemExit(3)"],
    "small:greedy": [sys.executable, "-c", "x = b'x' * 200_000_000; import time; time.sleep(60)"],
    "small:slow": [sys.executable, "-c", "import time; time.sleep(60)"],
}


class Killed(BaseException):
    """The end of the process that deploys: it makes no further call."""


class MortalCluster(Cluster):
    """A client whose process is killed just before a call: `doomed` is asked about each."""

    doomed: Callable[[str, str], bool] | None = None
    is_dead = False

    def _call(self, method: str, path: str, *arguments: Any, **options: Any) -> Any:
        self.is_dead = self.is_dead or bool(self.doomed and self.doomed(method, path.rpartition("/namespaces/ml/")[2]))
        if self.is_dead:
            raise Killed
        return super()._call(method, path, *arguments, **options)


class Small:
    """Rollouts of versions of the package ``small`` to a cluster."""

    def __init__(self, cluster: ModelCluster) -> None:
        self.cluster = cluster
        self.resource = KubernetesResource(kubeconfig=str(cluster.kubeconfig))

    def plan(self, version: str, *, factor: str = "", golden: Callable[[], None] | None = None, **options: Any) -> Plan:
        packager = SmallPackages()
        number = version if version.isdigit() else "1"
        package = Package(tag=f"small:{version}", tool="small", home="", model_name="small", model_version=number)
        expected = Package(tag="", tool="small", home="", model_name="small", model_version=factor or number)

        def golden_rows() -> Any:
            if golden:
                golden()
            return packager.golden(expected, pd.DataFrame({"x": [1.0, 2.0]}), 2)

        parts = {"hash": "g", "ready_timeout": 30.0, "pending_timeout": 0.0, "drain_seconds": 10.0}
        parts |= {name: options.pop(name) for name in list(options) if name in parts}
        target = KubernetesTarget(**{"namespace": "ml", "image": "{tag}", "replicas": 1, "user": None, **options})
        release = Release(
            name="small",
            package=package,
            target=target,
            server=packager.server(package, 3000),
            place=self.resource.place(target.namespace),
            ready_timeout=parts["ready_timeout"],
            drain_seconds=parts["drain_seconds"],
        )
        return Plan(
            release=release,
            route="/predict",
            golden_hash=parts["hash"],
            golden=golden_rows,
            pending_timeout=parts["pending_timeout"],
        )

    def roll_out(self, version: str, *, doomed: Callable[[str, str], bool] | None = None, **options: Any) -> Live:
        plan = self.plan(version, **options)
        namespace, pods_by = plan.release.target.namespace, self.resource.pods_by
        with MortalCluster(self.resource.client(), namespace, pods_by=pods_by) as client:
            client.doomed = doomed
            return rollout(plan, client, logging.getLogger("small"))

    @property
    def served(self) -> float:
        """The factor of the predictions that clients get."""
        return self.cluster.ask("small", 1.0).json()["predictions"][0]

    def records(self) -> list[Deployment]:
        texts = [self.cluster.get("configmaps", name)["data"]["record"] for name in self.cluster.names("configmaps")]
        return [record for text in texts if isinstance(record := Record.from_json(text), Deployment)]

    def live_ids(self) -> list[str]:
        return [record.id for record in self.records() if not record.stopped]

    def assert_only(self, live: Live) -> None:
        """Nothing of any other deployment is left but its record."""
        for collection in ("deployments", "secrets", "poddisruptionbudgets"):
            assert self.cluster.names(collection) == [live.record.id], collection
        assert self.live_ids() == [live.record.id]
        assert self.served == float(live.record.model_version)


@pytest.fixture
def small(tmp_path):
    with model_cluster(tmp_path / "cluster", IMAGES) as cluster:
        yield Small(cluster)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A cluster with version 1 live, for tests that leave it so."""
    with model_cluster(tmp_path_factory.mktemp("cluster"), IMAGES) as cluster:
        small = Small(cluster)
        small.roll_out("1")
        yield small


class Traffic:
    """Clients who ask without a pause, each fifth with a request that takes a while, and the answers they get."""

    def __init__(self, small: Small) -> None:
        self.answers: list[object] = []
        self._small, self._over = small, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(3)]

    def _run(self) -> None:
        while not self._over.is_set():
            row = {"x": 1.0, "seconds": 0.5 if len(self.answers) % 5 == 0 else 0}
            try:
                url = f"{self._small.cluster.address('small')}/predict"
                self.answers.append(httpx.post(url, json={"rows": [row]}, timeout=30, trust_env=False).status_code)
            except (httpx.HTTPError, ConnectionError) as error:
                self.answers.append(error)
            time.sleep(0.02)

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_a_switch_cuts_no_request_off_and_a_rerun_changes_nothing(small, caplog):
    caplog.set_level(logging.INFO, "small")
    first = small.roll_out("1", replicas=2)
    assert first.started and first.record.golden_max_difference == 0.0 and first.record.golden_rows == 2
    pods = small.cluster.names("pods")
    repeated = small.roll_out("1", replicas=2)
    assert not repeated.started and repeated.record == first.record
    assert small.cluster.names("pods") == pods
    with Traffic(small) as traffic:
        second = small.roll_out("2", replicas=2)
    assert {code for code in traffic.answers} == {200} and len(traffic.answers) > 20
    small.assert_only(second)
    assert [record.stopped != "" for record in small.records()] == [True, False]
    for word in ("0 of 2 pods are ready", "2 golden predictions of 2 pods agree", "takes all traffic", "was drained"):
        assert word in caplog.text
    assert small.roll_out("2", replicas=1).record.id == second.record.id, "another size needs no other pods"
    assert small.cluster.get("deployments", second.record.id)["spec"]["replicas"] == 1


def test_wrong_predictions_take_no_traffic(shared):
    with pytest.raises(DeploymentError, match=r"2 of 2 golden predictions differ"):
        shared.roll_out("wrong", factor="8")
    assert shared.served == 1.0
    assert len(shared.cluster.names("deployments")) == 1


FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "image": ("99", {}, r"image small:99 cannot be pulled \(ImagePullBackOff\).*not found"),
    "crash": ("crash", {}, r"the server ended with exit code 3 before it was ready[\s\S]*no such model"),
    "memory": ("greedy", {"memory": "60Mi"}, r"OOMKilled\): its memory limit is 60Mi. Raise memory="),
    "node": ("2", {"gpus": 1}, r"no node takes pod .* Insufficient nvidia.com/gpu"),
    "slow": ("slow", {"ready_timeout": 2.0}, r"was not ready within 2 s: 0 of 1 pods are ready"),
    "secret": ("2", {"secrets": {"DATABASE_URL": "features/url"}}, r"CreateContainerConfigError\): secret not found"),
    "schema": ("2", {"service": {"spec": {"ipFamilyPolicy": 3}}}, r"Service.spec.ipFamilyPolicy: 3 must be text"),
    "namespace": ("2", {"namespace": "nope"}, r"Run `kubectl create namespace nope`"),
}


@pytest.mark.parametrize(("version", "options", "message"), FAULTS.values(), ids=list(FAULTS))
def test_a_fault_is_named_with_its_fix_and_the_live_deployment_stays(shared, version, options, message):
    options = dict(options)
    profile = {name: options.pop(name) for name in ("memory", "gpus") if name in options}
    if profile:
        options["profile"] = GpuProfile(name="p", **{"gpus": 0, **profile})
    [live] = shared.live_ids()
    with pytest.raises(DeploymentError, match=message):
        shared.roll_out(version, **options)
    assert shared.cluster.names("deployments") == shared.live_ids() == [live]
    assert shared.served == 1.0


def test_a_quota_is_named_before_the_time_is_up(shared):
    shared.cluster.quota = 1
    try:
        with pytest.raises(DeploymentError, match=r"exceeded quota: team.* raise the quota, lower replicas="):
            shared.roll_out("2")
    finally:
        shared.cluster.quota = 100
    assert shared.served == 1.0


def test_a_first_deployment_that_fails_leaves_nothing_behind(small):
    with pytest.raises(DeploymentError, match=r"exit code 3"):
        small.roll_out("crash")
    wait_while(lambda: small.cluster.objects, timeout=20, error=AssertionError)


def test_who_may_not_or_cannot_ask_the_cluster_is_told_at_once(tmp_path, small):
    small.cluster.rules = []
    with pytest.raises(DeploymentError, match=r'cannot get resource "services".*Rights'):
        small.roll_out("1")
    small.cluster.rules = None
    small.cluster.is_deaf = True
    with pytest.raises(DeploymentError, match=r"does not answer.*Look at the context"):
        small.roll_out("1")
    small.cluster.is_deaf = False
    small.resource = KubernetesResource(kubeconfig=str(tmp_path / "none"))
    with pytest.raises(DeploymentError, match=r"leads to no cluster.*get-contexts"):
        small.roll_out("1")
    assert small.cluster.objects == {}


def test_a_cluster_is_asked_by_tls_with_its_certificate_and_our_token(small, tmp_path):
    access = certificate(tmp_path / "tls", "localhost")
    small.cluster.encrypt(access.certificate, str(access.key))
    live = small.roll_out("1")
    assert live.record.golden_rows == 2, "asked through the proxy of the API server"
    other = certificate(tmp_path / "other", "localhost")
    kubeconfig = small.cluster.kubeconfig
    kubeconfig.write_text(kubeconfig.read_text().replace(access.certificate, other.certificate))
    with pytest.raises(DeploymentError, match=r"does not answer.*CERTIFICATE_VERIFY_FAILED"):
        small.roll_out("1")


def test_in_a_pod_the_cluster_is_that_of_the_pod_with_its_service_account(small, tmp_path, monkeypatch):
    access, token = certificate(tmp_path / "tls", "localhost"), tmp_path / "token"
    token.write_text("t0ken")
    small.cluster.encrypt(access.certificate, str(access.key))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", access.certificate)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(small.cluster.server_port))
    small.resource = KubernetesResource()
    record = small.roll_out("1").record
    assert (record.state_dir, record.url) == ("kubernetes:///ml", "http://small.ml:80")
    assert K8sTool().resolve(record.ref).record == record


def test_golden_rows_may_go_to_the_addresses_of_the_pods(small, monkeypatch):
    """Only the name of the Service is resolved for the test: the cluster has no DNS."""
    small.resource = KubernetesResource(kubeconfig=str(small.cluster.kubeconfig), pods_by="network")
    monkeypatch.setattr(MortalCluster, "service_url", lambda self, name, port: small.cluster.address(name))
    assert small.roll_out("1").record.golden_rows == 2
    assert not [call for call in small.cluster.calls if call[1].endswith("/proxy")]


def test_the_role_in_the_documentation_has_all_rights_that_a_rollout_needs(small):
    [role] = [
        block
        for text in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if (block := yaml.safe_load(text)).get("kind") == "Role"
    ]
    small.cluster.rules = role["rules"]
    profile = GpuProfile(name="p", gpus=0, cpu=1)
    with pytest.raises(DeploymentError, match=r"exit code 3"):
        small.roll_out("crash")  # the first one, whose Service goes too
    small.roll_out("1", max_replicas=3, profile=profile)
    [name] = small.cluster.names("deployments")
    small.cluster.edit("deployments", name, ["spec", "replicas"], 2, "horizontal-pod-autoscaler")
    second = small.roll_out("2", max_replicas=3, profile=profile)
    assert small.cluster.get("deployments", second.record.id)["spec"]["replicas"] == 2, "as many as were live"
    used = {(resource, verb) for verb, resource in small.cluster.calls}
    allowed = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert allowed - used <= {(kind, "create") for kind, _ in allowed}, "rights that no rollout uses"


def test_what_kubectl_has_changed_is_an_error_until_it_is_taken_back(small):
    live = small.roll_out("1")
    small.cluster.edit("deployments", live.record.id, ["spec", "replicas"], 3)
    with pytest.raises(DeploymentError, match=r'\.spec\.replicas: conflict with "kubectl-edit".*force=True'):
        small.roll_out("1")
    assert small.cluster.get("deployments", live.record.id)["spec"]["replicas"] == 3
    small.roll_out("1", force=True)
    assert small.cluster.get("deployments", live.record.id)["spec"]["replicas"] == 1
    small.cluster.edit("services", "small", ["spec", "selector"], {"app": "mine"})
    with pytest.raises(DeploymentError, match=r'\.spec\.selector: conflict with "kubectl-edit"'):
        small.roll_out("2")
    small.assert_only(small.roll_out("2", force=True))


# The call before which the process that deploys is killed, as the n-th that it makes of its kind.
KILLS = {
    "turn": ("PATCH", "services/small", 2),
    "record": ("PATCH", "configmaps/", 1),
    "start": ("PATCH", "deployments/", 2),
    "ready": ("GET", "pods", 1),
    "verify": ("GET", "pods", 2),
    "shift": ("PATCH", "services/small", 3),
    "shifted": ("GET", "endpointslices", 1),
    "live": ("PATCH", "configmaps/", 2),
    "drain": ("DELETE", "deployments/", 1),
    "ended": ("PATCH", "configmaps/", 3),
}


@pytest.mark.parametrize("kill", KILLS.values(), ids=list(KILLS))
def test_a_rollout_that_was_killed_is_finished_or_undone_by_the_next(small, kill):
    method, path, number = kill
    calls: list[str] = []
    quick: dict[str, Any] = {"pre_stop_seconds": 0}

    def doomed(called_method: str, called_path: str) -> bool:
        if called_method == method and called_path.startswith(path):
            calls.append(called_path)
        return len(calls) == number

    small.roll_out("1", **quick)
    with pytest.raises(Killed):
        small.roll_out("2", **quick, doomed=doomed)
    assert small.served in (1.0, 2.0)
    small.assert_only(small.roll_out("2", **quick))  # finished
    calls.clear()
    with pytest.raises(Killed):
        small.roll_out("3", **quick, doomed=doomed)
    small.assert_only(small.roll_out("2", **quick))  # undone, also where the traffic had been moved


def test_of_two_rollouts_at_a_time_the_last_one_to_begin_goes_live(small):
    small.roll_out("1")
    other: list[Live] = []
    with pytest.raises(
        DeploymentError, match=r"Another rollout of 'small' has begun|was deleted during its rollout: by another one"
    ):
        small.roll_out("2", golden=lambda: other.append(small.roll_out("3")))
    small.assert_only(other[0])


def test_a_rollout_that_looked_before_another_one_does_not_move_the_traffic_back(small):
    small.roll_out("1")
    other: list[Live] = []

    def meanwhile(method: str, path: str) -> bool:
        if method == "PATCH" and not other:  # the first dry run: what is live was read before
            other.append(small.roll_out("3"))
        return False

    with pytest.raises(DeploymentError, match=r"Another rollout of 'small' has begun"):
        small.roll_out("2", doomed=meanwhile)
    small.assert_only(other[0])


def test_a_service_that_does_not_answer_is_rolled_back(small, monkeypatch):
    """The pods answer, the Service leads elsewhere: its port is that of another container."""
    monkeypatch.setattr("dagster_mlops.k8s.serving.switch._SERVICE_SECONDS", 1)
    first = small.roll_out("1")
    address = small.cluster.address
    monkeypatch.setattr(small.cluster, "address", lambda service: f"http://127.0.0.1:9/{service}")
    with pytest.raises(DeploymentError, match=r"Service small does not answer with them"):
        small.roll_out("2")
    monkeypatch.setattr(small.cluster, "address", address)
    small.assert_only(first)


def test_predictions_in_the_claim_lead_to_the_record_in_the_cluster(small, tmp_path, monkeypatch):
    from dagster_mlops.serving import PredictionLog

    folder = str(tmp_path / "predictions")
    live = small.roll_out("1", prediction_claim="predictions", prediction_log=folder)
    assert small.cluster.ask("small", 2.0, headers={"x-request-id": "r1"}).status_code == 200
    row = PredictionLog.find(folder, "r1")
    assert row is not None and row["output"] == 2.0
    [upstream] = Record.from_dict(row).upstream
    assert upstream == live.record.ref == Ref("k8s", "deployment", live.record.ref.id, at="kubernetes://test/ml")
    assert len(PredictionLog.read(folder)) == 1, "golden rows are not logged"
    monkeypatch.setenv("KUBECONFIG", str(small.cluster.kubeconfig))
    tool = K8sTool()
    assert tool.resolve(upstream).record == live.record
    small.roll_out("2")
    former = tool.resolve(upstream).record
    assert isinstance(former, Deployment) and former.stopped and former.upstream == live.record.upstream
    assert tool.resolve(Ref("k8s", "deployment", "small/gone", at="kubernetes://test/ml")).bucket == "deleted"
    assert tool.resolve(Ref("k8s", "deployment", "a/b", at="kubernetes://elsewhere/ml")).bucket == "inaccessible"
