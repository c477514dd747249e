"""Every option of the checks in YAML."""

import inspect
from typing import Any

import dagster as dg
import pytest
from dagster.components.testing import create_defs_folder_sandbox

from dagster_mlops import evidently, monitoring
from tests.support import known_warnings

pytestmark = [*known_warnings.DAGSTER_BETA]

# Functions of Python have no YAML; the rest of these are Dagster's own words.
PYTHON_ONLY = {"lower_is_better", "resource_key", "description", "check_options", "options"}
QUALITY = {
    "asset": "raw/weather", "name": "good", "columns": ["temp", "origin", "at", "dewp"],
    "max_missing_share": {"temp": 0.05}, "max_malformed_share": 0.1, "min_rows": 2, "max_rows": 10,
    "types": {"temp": "number"}, "ranges": {"temp": [-30, 120]}, "categories": {"origin": ["EWR", "JFK"]},
    "at_least": {"temp": "dewp"}, "no_duplicates_of": ["origin", "at"], "time": "at", "max_age": {"hours": 3},
    "reference": "raw/good", "reference_partitions": ["2013-01"], "learn": ["types", "orders"], "tolerance": 0.02,
    "severity": "WARN", "blocking": True,
}  # fmt: skip
PERFORMANCE = {
    "asset": "predictions", "target": "late", "prediction": "p", "bounds": {"roc_auc": 0.6, "f1": [0.1, None]},
    "metrics": ["brier"], "task": "classification", "name": "good", "labels": "arrivals", "key": "id", "time": "at",
    "segment": "carrier", "reference": "validation", "reference_partitions": ["2013-01"], "max_drop": 0.2,
    "false_alarm_rate": 0.05, "threshold": 0.4, "min_labels": 100, "severity": "ERROR", "blocking": True,
}  # fmt: skip
DRIFT = {
    "asset": "predictions", "reference": "training_set", "name": "good", "columns": ["temp", "carrier"],
    "drift_share": 0.3, "alarm_at": None, "missing_change": 0.2, "new_change": 0.3, "importance": {"temp": 2},
    "segment": "carrier", "min_rows": 100, "preset": {"num_method": "ks"}, "reference_partitions": ["2013-01"],
    "severity": "ERROR", "blocking": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("component", "factory", "options"),
    [
        (monitoring.DataQualityCheckComponent, monitoring.data_quality_check, QUALITY),
        (evidently.DataQualityCheckComponent, monitoring.data_quality_check, QUALITY),
        (monitoring.PerformanceCheckComponent, monitoring.performance_check, PERFORMANCE),
        (evidently.PerformanceCheckComponent, monitoring.performance_check, PERFORMANCE),
        (evidently.DriftCheckComponent, monitoring.drift_check, DRIFT),
    ],
    ids=["quality", "evidently quality", "performance", "evidently performance", "evidently drift"],
)
def test_every_option_of_a_check_can_be_written_in_yaml(component: Any, factory, options):
    written = {**options, "options": 0} if "preset" in options else options
    assert set(inspect.signature(factory).parameters) - PYTHON_ONLY - {"tool"} <= set(written)
    assert set(options) | {"tool"} >= set(component.model_fields)
    with create_defs_folder_sandbox() as sandbox:
        contents = {"type": f"{component.__module__.rpartition('.')[0]}.{component.__name__}", "attributes": options}
        path = sandbox.scaffold_component(component_cls=component, defs_yaml_contents=contents)
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            [check] = defs.asset_checks or []
    assert isinstance(check, dg.AssetsDefinition)
    [spec] = check.check_specs
    assert spec.key.to_user_string() == f"{options['asset']}:good" and spec.blocking
    assert check.required_resource_keys >= ({"evidently"} if "evidently" in component.__module__ else set())
