"""Fails when Dagster has a public name for one that we take from its inside."""

import dagster as dg


def test_dagster_reads_a_config_by_a_schema_in_private_only():
    assert not hasattr(dg, "process_config"), "use dg.process_config, and drop k8s/upstream.py"
