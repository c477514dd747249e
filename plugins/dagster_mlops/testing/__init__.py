"""Contract tests for a new tool, to be called from its own package's tests.

Each is a plain function that raises an AssertionError. None needs pytest.

    from dagster_mlops.testing import check_tool

    def test_contract(lake):
        check_tool(IcebergTool(), name="iceberg", present=lake.ref, absent=lake.ref_of("never written"))
"""

from dagster_mlops.testing.measure import check_measure, check_report
from dagster_mlops.testing.packager import check_packager
from dagster_mlops.testing.records import check_record
from dagster_mlops.testing.registry import check_registry
from dagster_mlops.testing.tools import check_datasets, check_runs, check_tool

__all__ = [
    "check_datasets",
    "check_measure",
    "check_packager",
    "check_record",
    "check_registry",
    "check_report",
    "check_runs",
    "check_tool",
]
