"""GPU profiles that a cluster would accept, and one executor for laptop and cluster."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox

from dagster_mlops.errors import ExecutorConfigError
from dagster_mlops.k8s import (
    ExecutorComponent,
    GpuProfile,
    PodPolicy,
    mlops_executor,
    validate_definitions,
    validate_k8s_config,
)
from dagster_mlops.k8s.schema import committed, installed
from tests.support import known_warnings

# Dagster's own YAML loader calls pydantic's parse_obj_as and its beta code references.
pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.DAGSTER_BETA]

GPU = GpuProfile(name="h200", gpus=2, product="NVIDIA-H200", memory="64Gi", shm="16Gi", pool="gpu-h200")


@dg.op(tags=GPU.op_tags())
def train() -> dict:
    """What a step can say about the process it runs in."""
    return {"pid": os.getpid(), "parent": os.getppid(), "pandas": "pandas" in sys.modules}


@dg.job(executor_def=mlops_executor(preload_modules=["pandas"]))
def tiny():
    train()


@dg.job(executor_def=mlops_executor(k8s={"job_namespace": "ml", "job_image": "ml:1", "load_incluster_config": False}))
def remote():
    train()


@dg.asset(kinds={"mlflow"})
def trained() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"mlflow": "mlflow" in sys.modules})


def training() -> dg.JobDefinition:
    defs = dg.Definitions([trained], executor=mlops_executor(), jobs=[dg.define_asset_job("training")])
    return defs.resolve_job_def("training")


def executed(choice: str | None) -> tuple[dg.JobExecutionResult, dict]:
    with dg.instance_for_test() as instance:
        config = {"execution": {"config": {choice: {}}}} if choice else None
        result = dg.execute_job(dg.reconstructable(tiny), instance, run_config=config)
        with result:
            return result, result.output_for_node("train")


@pytest.mark.usefixtures("own_forkserver")
def test_steps_that_train_start_with_mlflow_imported_once_for_all():
    with dg.instance_for_test() as instance, dg.execute_job(dg.reconstructable(training), instance) as result:
        [event] = result.get_asset_materialization_events()
        assert event.materialization.metadata["mlflow"].value is True


def test_steps_run_in_the_runs_own_process_when_asked_to():
    result, said = executed("in_process")
    assert result.success and said["pid"] == os.getpid()


@pytest.mark.usefixtures("own_forkserver")
def test_steps_run_in_processes_forked_from_a_server_with_the_slow_modules_by_default():
    result, said = executed(None)
    assert result.success and said["pid"] != os.getpid()
    assert said["parent"] != os.getpid()  # the fork server
    assert said["pandas"]


def test_the_environment_switches_the_default_and_run_config_outweighs_it(monkeypatch):
    monkeypatch.setenv("DAGSTER_MLOPS_EXECUTOR", "in_process")

    @dg.job(executor_def=mlops_executor(default="multiprocess"))
    def switched():
        train()

    assert switched.execute_in_process().success
    assert switched.executor_def.config_schema.default_value == {"in_process": {}}
    monkeypatch.setenv("DAGSTER_MLOPS_EXECUTOR", "kubernetes")
    with pytest.raises(ExecutorConfigError, match=r"DAGSTER_MLOPS_EXECUTOR names executor 'kubernetes'"):
        mlops_executor()


def test_run_config_that_no_executor_has_is_refused_before_the_run():
    with pytest.raises(dg.DagsterInvalidConfigError, match="max_konkurrent"):
        dg.validate_run_config(tiny, {"execution": {"config": {"multiprocess": {"max_konkurrent": 2}}}})
    assert dg.validate_run_config(tiny, {"execution": {"config": {"k8s": {"job_namespace": "ml"}}}})


def test_kubernetes_defaults_are_checked_when_definitions_load():
    with pytest.raises(ExecutorConfigError, match=r"'job_namespaze'\. Did you mean 'job_namespace'\?"):
        mlops_executor(k8s={"job_namespaze": "ml"})
    with pytest.raises(
        ExecutorConfigError, match=r"per_step_k8s_config\.train is invalid:\n  container_config\.resourzes"
    ):
        mlops_executor(k8s={"per_step_k8s_config": {"train": {"container_config": {"resourzes": {}}}}})


def test_without_a_kubernetes_launcher_the_error_says_what_to_set():
    config = {"execution": {"config": {"k8s": {}}}}
    with (
        dg.instance_for_test() as instance,
        pytest.raises(ExecutorConfigError, match="needs the K8sRunLauncher, but this Dagster instance has"),
    ):
        dg.execute_job(dg.reconstructable(tiny), instance, run_config=config)


def manifest_of(body: object) -> dict[str, Any]:
    """A Job as it would be sent, accepted by the strict schemas of an older and a recent cluster."""
    import kubernetes
    import kubernetes_validate

    manifest: Any = kubernetes.client.ApiClient().sanitize_for_serialization(body)
    for version in ("1.30", "1.37"):
        kubernetes_validate.validate(manifest, version, strict=True)
    return manifest


class Recorder:
    """Stands in for a cluster: keeps the Jobs that would be created."""

    def __init__(self) -> None:
        self.jobs: list = []

    def create_namespaced_job(self, body, namespace, **_):
        self.jobs.append((namespace, body))


def launched(tmp_path: Path, definition: dg.JobDefinition, config: dict[str, Any], **launcher_config: Any) -> list:
    """The Jobs, each after its namespace, that the one step of a job becomes with this config of the k8s executor."""
    # A step handler context is made by the executor's loop only; there is no public way to launch one step.
    from dagster._core.execution.api import create_execution_plan
    from dagster._core.execution.context.system import PlanData, PlanOrchestrationContext
    from dagster._core.execution.context_creation_job import create_context_free_log_manager
    from dagster._core.execution.retries import RetryMode
    from dagster._core.executor.step_delegating import StepHandlerContext
    from dagster._grpc.types import ExecuteStepArgs

    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {}}],
            }
        )
    )
    launcher = {
        "module": "dagster_k8s",
        "class": "K8sRunLauncher",
        "config": {
            "load_incluster_config": False,
            "kubeconfig_file": str(kubeconfig),
            "job_image": "ml:0",
            "dagster_home": "/dagster",
            "instance_config_map": "dagster-instance",
            "service_account_name": "dagster",
            "job_namespace": "other",
            **launcher_config,
        },
    }
    with dg.instance_for_test(overrides={"run_launcher": launcher}) as instance:
        job: Any = dg.reconstructable(globals()[definition.name])
        plan: Any = create_execution_plan(job)
        [key] = plan.step_keys_to_execute
        run = instance.create_run_for_job(definition, execution_plan=plan, job_code_origin=job.get_python_origin())
        create: Any = definition.executor_def.executor_creation_fn
        executor = create(
            dg.InitExecutorContext(
                job=job,
                executor_def=definition.executor_def,
                executor_config={"k8s": config},
                instance=instance,
            )
        )
        assert type(executor).__name__ == "StepDelegatingExecutor"
        handler, cluster = executor._step_handler, Recorder()
        handler._api_client.batch_api = cluster
        context = PlanOrchestrationContext(
            plan_data=PlanData(
                job=job,
                dagster_run=run,
                instance=instance,
                execution_plan=plan,
                raise_on_error=False,
                retry_mode=RetryMode.DISABLED,
            ),
            log_manager=create_context_free_log_manager(instance, run),
            executor=executor,
            output_capture=None,
        )
        step = StepHandlerContext(
            instance=instance,
            plan_context=context,
            steps=[plan.get_step_by_key(key)],
            execute_step_args=ExecuteStepArgs(
                job_origin=job.get_python_origin(),
                run_id=run.run_id,
                step_keys_to_execute=[key],
                instance_ref=instance.get_ref(),
            ),
            dagster_run=run,
        )
        list(handler.launch_step(step))
    return cluster.jobs


def test_a_step_becomes_a_job_that_the_kubernetes_schema_accepts(tmp_path):
    jobs = launched(tmp_path, remote, {"step_k8s_config": {"job_spec_config": {"backoff_limit": 0}}})
    [(namespace, body)] = jobs
    manifest = manifest_of(body)
    pod = manifest["spec"]["template"]["spec"]
    assert namespace == "ml" and pod["serviceAccountName"] == "dagster"
    [container] = pod["containers"]
    assert container["image"] == "ml:1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2", "memory": "64Gi"}
    assert container["resources"]["requests"]["nvidia.com/gpu"] == "2"
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    assert pod["tolerations"] == [{"effect": "NoSchedule", "key": "nvidia.com/gpu", "operator": "Exists"}]
    assert manifest["spec"]["template"]["metadata"]["labels"]["dagster-mlops/gpu-profile"] == "h200"
    assert "execute_step" in json.dumps(container["args"])


HOSTILE = {
    "hostNetwork": {"pod_spec_config": {"host_network": True}},
    "hostPID": {"pod_spec_config": {"hostPID": True}},
    "/var/run": {"pod_spec_config": {"volumes": [{"name": "v", "host_path": {"path": "/mnt/data/../../var/run"}}]}},
    "volume 'v'": {"pod_spec_config": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}},
    "service account 'admin'": {"pod_spec_config": {"serviceAccountName": "admin"}},
    "service account 'root'": {"pod_spec_config": {"service_account": "root"}},
    "container: privileged": {"container_config": {"security_context": {"privileged": True}}},
    "init": {"pod_spec_config": {"init_containers": [{"name": "i", "securityContext": {"privileged": True}}]}},
    "capabilities SYS_ADMIN": {
        "container_config": {"securityContext": {"capabilities": {"add": ["SYS_ADMIN", "KILL"]}}}
    },
    "hostPort 22": {"container_config": {"ports": [{"container_port": 22, "host_port": 22}]}},
    "procMount: Unmasked": {"container_config": {"security_context": {"proc_mount": "Unmasked"}}},
    "seccompProfile": {"pod_spec_config": {"security_context": {"seccomp_profile": {"type": "Unconfined"}}}},
    "sysctl kernel.msgmax": {
        "pod_spec_config": {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}
    },
    "annotation": {
        "pod_template_spec_metadata": {
            "annotations": {"container.apparmor.security.beta.kubernetes.io/dagster": "unconfined"}
        }
    },
    "host 10.0.0.1": {"container_config": {"liveness_probe": {"http_get": {"host": "10.0.0.1", "port": 80}}}},
    "host 10.0.0.2": {
        "pod_spec_config": {"containers": [{"lifecycle": {"preStop": {"tcpSocket": {"host": "10.0.0.2"}}}}]}
    },
    "volume 'v' of type gitRepo": {
        "pod_spec_config": {"volumes": [{"name": "v", "git_repo": {"repository": "https://evil.example/x"}}]}
    },
    "volume 'v' of type flexVolume": {"pod_spec_config": {"volumes": [{"name": "v", "flexVolume": {"driver": "a/b"}}]}},
    "volume 'v' of type nfs": {
        "job_spec_config": {"template": {"spec": {"volumes": [{"name": "v", "nfs": {"server": "h", "path": "/"}}]}}}
    },
    "namespace 'other'": {"job_metadata": {"namespace": "other"}},
    "namespace 'third'": {"job_config": {"spec": {"template": {"metadata": {"namespace": "third"}}}}},
    "annotation seccomp": {
        "pod_template_spec_metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}}
    },
    "annotation container.seccomp": {
        "job_spec_config": {
            "template": {"metadata": {"annotations": {"container.seccomp.security.alpha.kubernetes.io/a": True}}}
        }
    },
    "ephemeral": {
        "pod_spec_config": {"ephemeral_containers": [{"name": "e", "security_context": {"privileged": True}}]}
    },
    "hostIPC": {"job_spec_config": {"template": {"spec": {"host_ipc": True, "containers": []}}}},
}


@pytest.mark.parametrize("says", HOSTILE)
def test_the_baseline_has_nothing_of_the_node_in_any_spelling(says):
    config = HOSTILE[says]
    text = "privileged" if says in ("init", "ephemeral") else re.escape(says)
    with pytest.raises(ExecutorConfigError, match=rf"(?s)Tag asks for what the policy.*{text}.*to allow it"):
        PodPolicy().refuse(config, "Tag")
    PodPolicy(allow=["*"]).refuse(config, "Tag")
    if not says.startswith("namespace"):
        PodPolicy().refuse(config, "Tag", base=config)


def test_volumes_of_the_cluster_and_its_own_namespace_are_a_pods_to_name():
    kinds = ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"]
    volumes = [{"name": kind, kind: {}} for kind in kinds] + [{"name": "v", "nfs": None}]
    config = {"pod_spec_config": {"volumes": volumes}, "job_metadata": {"namespace": "ml"}}
    PodPolicy().refuse(config, "Tag", base_namespace="ml")
    PodPolicy(namespaces=["ml"]).refuse(config, "Tag")
    PodPolicy(allow=["nfs"]).refuse(HOSTILE["volume 'v' of type nfs"], "Tag")
    on = {"container.apparmor.security.beta.kubernetes.io/a": "localhost/x"}
    PodPolicy().refuse({"pod_template_spec_metadata": {"annotations": on}}, "Tag")
    kubernetes = set(committed()["models"]["V1Volume"])
    assert {"git_repo", "flex_volume", "host_path", "nfs"} < kubernetes, "the names of the schema"


def test_what_the_policy_names_is_allowed_and_only_that():
    policy = PodPolicy(
        service_accounts=["admin"], host_paths=["/mnt/data"], capabilities=["SYS_ADMIN"], allow=["hostPID"]
    )
    for says in ("service account 'admin'", "capabilities SYS_ADMIN", "hostPID"):
        policy.refuse(HOSTILE[says], "Tag")
    mount = {"pod_spec_config": {"volumes": [{"name": "v", "hostPath": {"path": "/mnt/data/mnist"}}]}}
    policy.refuse(mount, "Tag")
    for says in ("/var/run", "service account 'root'", "hostNetwork"):
        with pytest.raises(ExecutorConfigError, match=re.escape(says)):
            policy.refuse(HOSTILE[says], "Tag")


@dg.op(tags={"dagster-k8s/config": HOSTILE["volume 'v'"]})
def reads_the_node() -> None: ...


@dg.job(executor_def=mlops_executor(k8s={"job_image": "ml:1", "load_incluster_config": False}))
def curious():
    reads_the_node()


def test_a_pod_that_breaks_the_policy_is_not_launched_whichever_layer_asks(tmp_path):
    with pytest.raises(
        ExecutorConfigError, match=r"(?s)The pod of step 'reads_the_node' asks .*folder '/' of the node"
    ):
        launched(tmp_path, curious, {})
    with pytest.raises(ExecutorConfigError, match="service account 'admin'"):
        launched(tmp_path, remote, {"service_account_name": "admin"})
    with pytest.raises(ExecutorConfigError, match="namespace 'kube-system'"):
        launched(tmp_path, remote, {"job_namespace": "kube-system"})
    with pytest.raises(ExecutorConfigError, match="hostNetwork"):
        launched(tmp_path, remote, {"per_step_k8s_config": {"train": HOSTILE["hostNetwork"]}})
    # What dagster.yaml gives to all runs is its administrator's.
    [(_, body)] = launched(tmp_path, remote, {}, volumes=[{"name": "data", "host_path": {"path": "/mnt"}}])
    volumes = manifest_of(body)["spec"]["template"]["spec"]["volumes"]
    assert {"path": "/mnt"} in [volume.get("hostPath") for volume in volumes]


def test_tags_and_defaults_that_the_policy_refuses_are_found_when_definitions_load():
    defs = dg.Definitions(jobs=[curious])
    assert validate_definitions(defs) is defs
    with pytest.raises(ExecutorConfigError, match="op 'reads_the_node' of job 'curious' asks"):
        validate_definitions(defs, policy=PodPolicy())
    with pytest.raises(ExecutorConfigError, match=r"per_step_k8s_config\.train asks"):
        mlops_executor(k8s={"per_step_k8s_config": {"train": HOSTILE["hostNetwork"]}})


FULL = GpuProfile(
    name="mig",
    gpus=1,
    resource="nvidia.com/mig-1g.5gb",
    product=["NVIDIA-A100", "NVIDIA-H100"],
    cpu=4,
    memory="10Gi",
    shm="2Gi",
    node_selector={"karpenter.sh/capacity-type": "spot"},
    priority_class="gpu-prod",
    runtime_class="nvidia",
    queue="team-nlp",
    deadline_seconds=7200,
    ttl_seconds=3600,
    labels={"team": "nlp"},
    annotations={"kueue.x-k8s.io/podset-required-topology": "cloud.provider.com/topology-rack"},
    extra={"pod_spec_config": {"termination_grace_period_seconds": 120}},
)


@pytest.mark.parametrize("profile", [GPU, FULL, GpuProfile(name="cpu", gpus=0)], ids=lambda p: p.name)
def test_every_profile_makes_a_manifest_that_the_strict_schema_accepts(profile):
    from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job

    body = construct_dagster_k8s_job(
        DagsterK8sJobConfig(job_image="ml:1", dagster_home="/d", instance_config_map="i"),
        ["dagster"],
        "job",
        user_defined_k8s_config=UserDefinedDagsterK8sConfig.from_dict(profile.k8s_config()),
    )
    manifest = manifest_of(body)
    if profile is FULL:
        assert manifest["spec"]["suspend"] is True and manifest["spec"]["activeDeadlineSeconds"] == 7200
        assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-nlp"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gpus": 0.5}, r"gpus: 0\.5 must be a whole number"),
        ({"gpus": -1}, "gpus: -1 must be a whole number"),
        ({"gpus": "one"}, "gpus: 'one' must be a whole number"),
        ({"resource": "gpu"}, "resource: 'gpu' is not a device"),
        ({"memory": "64 Gb"}, r"limits\.memory: '64 Gb' is not a quantity"),
        ({"shm": "-1Gi"}, "size_limit: '-1Gi' is not a quantity"),
        ({"labels": {"team": "nlp & cv"}}, r"labels\.team: 'nlp & cv' is not a label value"),
        ({"node_selector": {"bad key": "x"}}, "node_selector.bad key: is not a label key"),
        ({"deadline_seconds": 0}, "active_deadline_seconds: 0 is too small"),
        ({"tolerations": [{"key": "a", "effect": "NoShedule"}]}, r"tolerations\[0\]\.effect: 'NoShedule' is not one"),
        ({"tolerations": [{"keyy": "a"}]}, r"tolerations\[0\]\.keyy: V1Toleration has no such field"),
        ({"extra": {"pod_spec": {}}}, "pod_spec: no such section. Did you mean 'pod_spec_config'"),
        ({"extra": {"pod_spec_config": {"host_network": "yes"}}}, "host_network: 'yes' must be true or false"),
        ({"extra": {"container_config": {"env": {"A": "b"}}}}, r"container_config\.env: .* must be a list"),
        ({"extra": {"merge_behavior": "DEPP"}}, "merge_behavior: 'DEPP' is neither"),
    ],
)
def test_a_profile_that_no_cluster_accepts_is_refused_where_it_is_written(options, says):
    with pytest.raises(ExecutorConfigError, match=says) as caught:
        GpuProfile(**{"name": "bad", **options})
    assert "GpuProfile 'bad' is invalid" in str(caught.value)


def test_a_gpu_request_must_equal_its_limit():
    resources = {"limits": {"nvidia.com/gpu": 1}, "requests": {"nvidia.com/gpu": 2}}
    with pytest.raises(ExecutorConfigError, match="must equal the limit"):
        validate_k8s_config({"container_config": {"resources": resources}})


@pytest.mark.parametrize("field", ["labels", "annotations"])
def test_labels_that_are_no_mapping_are_refused_with_their_place(field):
    with pytest.raises(ExecutorConfigError, match=rf"pod_template_spec_metadata\.{field}"):
        validate_k8s_config({"pod_template_spec_metadata": {field: "team=nlp"}})


def test_camel_case_is_as_good_as_snake_case_but_not_both():
    validate_k8s_config({"pod_spec_config": {"nodeSelector": {"a": "b"}, "priorityClassName": "x"}})
    with pytest.raises(ExecutorConfigError, match="given twice"):
        validate_k8s_config({"pod_spec_config": {"nodeSelector": {"a": "b"}, "node_selector": {"a": "b"}}})


def test_hand_written_tags_are_checked_with_the_definitions_that_hold_them():
    @dg.asset(
        op_tags={"dagster-k8s/config": {"container_config": {"resources": {"limits": {"nvidia.com/gpu": "one"}}}}}
    )
    def model() -> None: ...

    with pytest.raises(ExecutorConfigError, match=r"of op 'model' is invalid:\n.*nvidia.com/gpu: 'one' is not a "):
        validate_definitions(dg.Definitions(assets=[model]))

    @dg.asset(op_tags=GPU.op_tags(), pool=GPU.pool)
    def good() -> None: ...

    defs = dg.Definitions(assets=[good], jobs=[tiny], executor=mlops_executor())
    assert validate_definitions(defs, with_client=True) is defs


def test_the_committed_schema_is_that_of_the_installed_client():
    assert committed() == installed(), "run: python -m dagster_mlops.k8s.schema"


def test_loading_and_defining_imports_nothing_of_kubernetes():
    code = (
        "import sys, dagster_mlops.k8s as k; k.mlops_executor(default='k8s', k8s={'job_namespace': 'ml'});"
        "k.GpuProfile(name='x', shm='1Gi'); print({'kubernetes', 'dagster_k8s'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_missing_extra_is_named_when_kubernetes_is_chosen():
    blocked = Path("blocked") / "dagster_k8s.py"
    blocked.parent.mkdir()
    blocked.write_text("raise ModuleNotFoundError(\"No module named 'dagster_k8s'\", name='dagster_k8s')\n")
    code = (
        "import dagster as dg, dagster_mlops.k8s.executor as e\n"
        "class C: instance = None\n"
        "try: e._kubernetes({}, C())\n"
        "except Exception as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": "blocked"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert "pip install 'dagster-mlops[k8s]'" in done.stdout, done.stderr


def test_an_executor_in_yaml():
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=ExecutorComponent,
            defs_yaml_contents={
                "type": "dagster_mlops.k8s.ExecutorComponent",
                "attributes": {
                    "default": "in_process",
                    "preload_modules": ["pandas"],
                    "k8s": {"job_namespace": "ml"},
                    "policy": {"host_paths": ["/mnt/data"]},
                },
            },
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            assert isinstance(defs.executor, dg.ExecutorDefinition)
            assert defs.executor.config_schema.default_value == {"in_process": {}}
