"""The example of a year of promotions tells its story, and the history is right about each of its times."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "promotions"


@pytest.mark.thorough
def test_a_worse_model_is_refused_a_better_one_waits_and_a_rollback_holds(tmp_path):
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    places = {"DAGSTER_HOME": f"{tmp_path}/dagster", "PROMOTIONS_STATE": f"{tmp_path}/state", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "promotions.story"],
        cwd=EXAMPLE, env={**os.environ, **places}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    steps = re.findall(r"→ (.*): champion is version (\d+)", done.stdout)
    assert [version for _, version in steps] == ["1", "1", "1", "3", "1"]
    assert re.findall(r"^champion +version (\d+)", done.stdout, re.MULTILINE) == ["1", "1", "1", "3", "1"]
    assert "fails  better auc, beyond chance" in done.stdout and "waits  approved by 1 person" in done.stdout
    assert "fails  not rolled back" in done.stdout and "✓ The history of late_flights holds" in done.stdout
