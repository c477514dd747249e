"""One executor for laptop, server and cluster, chosen when a run is launched."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import dagster as dg

from dagster_mlops.core.extras import extra
from dagster_mlops.errors import ExecutorConfigError
from dagster_mlops.k8s.policy import PodPolicy
from dagster_mlops.k8s.upstream import Layers, before_launch, process_config
from dagster_mlops.k8s.validation import validate_executor_config

Choice = Literal["in_process", "multiprocess", "k8s"]
VARIABLE = "DAGSTER_MLOPS_EXECUTOR"
# Modules whose import takes seconds in each step, by the kind of the assets that import them.
_SLOW = {"mlflow": "mlflow"}


def mlops_executor(
    *,
    default: Choice = "multiprocess",
    preload_modules: Sequence[str] = ("dagster",),
    max_concurrent: int | None = None,
    k8s: Mapping[str, Any] | None = None,
    policy: PodPolicy | None = None,
) -> dg.ExecutorDefinition:
    """An executor that runs steps in process, in processes or in Kubernetes pods, for the same code location.

        defs = dg.Definitions(assets=[...], executor=mlops_executor(preload_modules=["pandas", "sklearn"]))

    The executor is chosen by, in this order: the run config (launchpad, job, schedule, ``dg launch --config``); the
    environment variable ``DAGSTER_MLOPS_EXECUTOR`` of the code location, with which a deployment switches without a
    change of code; `default`::

        execution:
          config:
            k8s: {job_namespace: ml, step_k8s_config: {...}}

    Kubernetes is imported only if it is chosen.

    Args:
        default: Executor of runs whose config names none.
        preload_modules: Modules that are imported once, by the server that step processes are forked from. Name the
            slow ones that your steps need. MLflow is added in runs with assets of that kind, such as training assets.
        max_concurrent: Maximum steps of one run at the same time, in processes or pods. By default one per CPU in
            processes, and no limit in pods.
        k8s: Defaults of dagster-k8s' executor, e.g. ``job_namespace`` and ``step_k8s_config``; run config replaces them
            key by key.
        policy: What pods of steps may do, checked as each is launched, whoever asked for it. Default: what Kubernetes'
            baseline of pod security allows, and what ``dagster.yaml``, the code location and `k8s` give to all steps.

    Raises:
        ExecutorConfigError: The default, the environment variable or `k8s` has an unknown name, or `k8s` asks for what
            the policy does not allow.
    """
    choice = os.environ.get(VARIABLE) or default
    if choice not in get_args(Choice):
        source = f"environment variable {VARIABLE}" if os.environ.get(VARIABLE) else "default"
        raise ExecutorConfigError(
            f"{source} names executor {choice!r}; there are {', '.join(get_args(Choice))}. Choose one of them."
        )
    pods = dict(k8s or {})
    if max_concurrent is not None:
        pods.setdefault("max_concurrent", max_concurrent)
    validate_executor_config(pods, "mlops_executor(k8s=...)")
    rules = policy or PodPolicy()
    for op, config in (pods.get("per_step_k8s_config") or {}).items():
        rules.refuse(config, f"mlops_executor(k8s=...).per_step_k8s_config.{op}")

    @dg.executor(
        name="mlops",
        config_schema=dg.Field(
            dg.Selector(
                {
                    "in_process": dg.Field(dg.in_process_executor.config_schema.config_type, is_required=False),
                    "multiprocess": dg.Field(dg.multiprocess_executor.config_schema.config_type, is_required=False),
                    # Any mapping, because the schema is dagster-k8s', which is imported only when chosen.
                    "k8s": dg.Field(dg.Permissive(), is_required=False, description="Config of k8s_job_executor."),
                }
            ),
            default_value={choice: {}},
        ),
        requirements=lambda config: [] if "in_process" in config else dg.multiple_process_executor_requirements(),
    )
    def mlops(context: dg.InitExecutorContext) -> dg.Executor:
        [(name, values)] = cast("dict[str, dict[str, Any]]", context.executor_config).items()
        config = dict(values)
        if name == "in_process":
            return _created(dg.in_process_executor, config, context)
        if name == "multiprocess":
            modules = [*preload_modules, *_needed(context)]
            config.setdefault("start_method", {"forkserver": {"preload_modules": modules}})
            config["max_concurrent"] = config.get("max_concurrent") or max_concurrent
            return _created(dg.multiprocess_executor, config, context)
        executor = _created(*_kubernetes({**pods, **config}, context), context)

        def check(step: str, layers: Layers) -> None:
            rules.refuse(where=f"The pod of step {step!r}", **layers._asdict())

        return before_launch(executor, pods, check)

    return mlops


def _needed(context: dg.InitExecutorContext) -> list[str]:
    layer = context.job.get_definition().asset_layer
    kinds = {kind for key in layer.selected_asset_keys for kind in layer.get(key).kinds}
    return [module for kind, module in _SLOW.items() if kind in kinds]


def _kubernetes(
    config: Mapping[str, Any], context: dg.InitExecutorContext
) -> tuple[dg.ExecutorDefinition, dict[str, Any]]:
    """dagster-k8s' executor and its config, checked here because the permissive schema did not."""
    validate_executor_config(config)
    tool = extra("dagster_k8s")
    launcher = context.instance.run_launcher
    if not isinstance(launcher, tool.K8sRunLauncher):
        raise ExecutorConfigError(
            f"the k8s executor needs the K8sRunLauncher, but this Dagster instance has {type(launcher).__name__}. "
            "Set run_launcher in dagster.yaml to module dagster_k8s, class K8sRunLauncher, or choose another executor "
            f"in the run config or by {VARIABLE}."
        )
    processed = process_config(tool.k8s_job_executor.config_schema.config_type, dict(config))
    if not processed.success:
        raise dg.DagsterInvalidConfigError("Error in config for the k8s executor", processed.errors, config)
    return tool.k8s_job_executor, dict(processed.value or {})


def _created(
    definition: dg.ExecutorDefinition, config: Mapping[str, Any], context: dg.InitExecutorContext
) -> dg.Executor:
    create = definition.executor_creation_fn
    assert create is not None
    return create(context._replace(executor_def=definition, executor_config=config))
