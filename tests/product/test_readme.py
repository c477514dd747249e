"""What the README shows can be pasted."""

import re
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox

from dagster_mlops.mlflow import MlflowResource, PromotionComponent
from tests.support import known_warnings

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()

pytestmark = [*known_warnings.DAGSTER_BETA, *known_warnings.DEPRECATED, *known_warnings.ON_IMPORT]


def block(language: str) -> str:
    return next(iter(re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)))


def test_the_python_example_loads():
    names: dict = {}
    exec(compile(block("python"), "README.md", "exec"), names)
    dg.Definitions.validate_loadable(names["defs"])


@pytest.mark.thorough
def test_the_python_example_runs_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block("python"), "README.md", "exec"), names)
    job = names["defs"].get_implicit_global_asset_job_def()
    result = job.execute_in_process()
    assert result.success and all(check.passed for check in result.get_asset_check_evaluations())
    [champion] = result.asset_materializations_for_node("champion")
    assert champion.metadata["mlflow/promoted"].value is True


def test_the_yaml_example_builds_its_asset():
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=PromotionComponent, defs_yaml_contents=yaml.safe_load(block("yaml"))
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            bound = dg.Definitions.merge(defs, dg.Definitions(resources={"mlflow": MlflowResource(tracking_uri="x")}))
            assert dg.AssetKey("champion") in {spec.key for spec in bound.resolve_all_asset_specs()}
