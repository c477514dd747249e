"""All uses of Dagster's private names (1.13) for executors, each with the reason why no public name can replace it.

`tests/k8s/test_upstream.py` fails once Dagster has a public name, so that the name here can be removed.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# Reads a config by a schema that is known only when Kubernetes is chosen; `validate_run_config` needs a whole job.
# https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/dagster/dagster/_config/validate.py
from dagster._config import process_config as process_config

from dagster_mlops.core.extras import extra


class Layers(NamedTuple):
    """The config and namespace of a step's pod, and those that all steps have from launcher, location and executor."""

    config: Mapping[str, Any]
    namespace: str | None
    base: Mapping[str, Any]
    base_namespace: str | None


def before_launch(executor: Any, defaults: Mapping[str, Any], check: Callable[[str, Layers], None]) -> Any:
    """Call `check` with the name of a step and its config, before the executor of dagster-k8s creates the step's pod.

    `defaults` is the part of the executor's config that all steps have.

    Dagster-k8s merges the config of a step's pod from all layers as it launches the step, in private; and
    `only_allow_user_defined_k8s_config_fields` of its launcher does not apply to steps.
    https://github.com/dagster-io/dagster/blob/1.13.27/python_modules/libraries/dagster-k8s/dagster_k8s/executor.py
    """
    handler, contexts = executor._step_handler, extra("dagster_k8s.container_context").K8sContainerContext
    launch, config = handler.launch_step, extra("dagster_k8s.job").UserDefinedDagsterK8sConfig
    of_all = contexts(
        **{name: defaults.get(name) for name in ("service_account_name", "volumes", "security_context")},
        namespace=defaults.get("job_namespace"),
        run_k8s_config=config.from_dict(defaults.get("step_k8s_config") or {}),
    )

    def launch_step(context: Any) -> Any:
        [step] = context.execute_step_args.step_keys_to_execute
        launcher = context.instance.run_launcher
        base = contexts.create_for_run(context.dagster_run, launcher, include_run_tags=False).merge(of_all)
        merged = handler._get_container_context(context)
        layers = [(layer.run_k8s_config.to_dict(), layer.namespace) for layer in (merged, base)]
        check(step, Layers(*layers[0], *layers[1]))
        return launch(context)

    handler.launch_step = launch_step
    return executor
