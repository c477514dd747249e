"""DVC keeps the contract of a tool that keeps datasets."""

import dataclasses

from dagster_mlops.dvc import DvcResource
from dagster_mlops.dvc.tool import DvcTool
from dagster_mlops.testing import check_datasets, check_tool
from tests.support import known_warnings

pytestmark = [*known_warnings.DVC, *known_warnings.UNCLOSED]


def test_dvc_answers_as_a_tool_has_to_and_gives_its_datasets_back(tmp_path):
    repo = tmp_path / "data"
    dvc = DvcResource(repo=str(repo), remote_url=str(tmp_path / "remote"))
    dvc.init()
    (repo / "x.txt").write_text("one")
    record = dvc.store("x.txt")
    present = record.ref
    absent = dataclasses.replace(present, id=f"never.txt@{record.md5}")
    check_tool(DvcTool(), name="dvc", present=present, absent=absent)
    check_datasets(DvcTool(), present)
