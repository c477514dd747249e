"""Evidently keeps the contract of a measure, and of the report that it writes."""

from dagster_mlops.evidently import EvidentlyResource
from dagster_mlops.testing import check_measure, check_report


def test_evidently_keeps_the_contract_of_a_measure(tmp_path):
    evidently = EvidentlyResource(reports=str(tmp_path / "reports"))
    check_measure(evidently)
    check_report(evidently, tmp_path / "reports")
