"""Fails when Dagster has a public name for one that we take from its inside."""

import inspect

import dagster as dg
from dagster_k8s.executor import K8sStepHandler


def test_dagster_reads_a_config_by_a_schema_in_private_only():
    assert not hasattr(dg, "process_config"), "use dg.process_config, and drop k8s/upstream.py"


def test_the_config_of_a_steps_pod_is_merged_in_private_and_the_launchers_list_is_not_applied_to_it():
    """Once it is, `upstream.before_launch` and the policy it serves can become settings of the launcher."""
    assert "_get_container_context" in vars(K8sStepHandler)
    assert "only_allow" not in inspect.getsource(K8sStepHandler), "drop upstream.before_launch"
