"""DVC projects in a subfolder of a checkout: what they read and write beside it belongs to them, too."""

import subprocess

import dagster as dg
import pytest

from dagster_mlops.dvc import pipeline_assets
from dagster_mlops.dvc.stages import load_project
from tests.support import known_warnings
from tests.support.dvc_projects import DvcProject, facts, outcomes

pytestmark = [
    pytest.mark.usefixtures("warm_dvc"),
    *known_warnings.DVC,
    *known_warnings.UNCLOSED,
    *known_warnings.DAGSTER_BETA,
]

FILES = {
    "../src/lib.sh": "echo lib\n",
    "../src/other.sh": "echo other\n",
    "../params.yaml": "size: 1\n",
    "../conf/vars.yaml": "suffix: txt\n",
    "dvc.yaml": """
        vars: [../conf/vars.yaml]
        stages:
          make:
            cmd: sh ../src/lib.sh > made.${suffix} && cp made.${suffix} ../report.json
            deps: [../src]
            params: [{../params.yaml: [size]}]
            outs: ["made.${suffix}"]
            metrics: [{../report.json: {cache: false}}]
          use:
            wdir: below
            cmd: cat ../made.txt ../../src/lib.sh > used.txt && mkdir -p ../../plots && cp used.txt ../../plots/u.csv
            deps: [../made.txt, ../../src/lib.sh]
            outs: [used.txt, {../../plots: {cache: false}}]
    """,
    "below/.gitkeep": "",
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    top = tmp_path_factory.mktemp("sub") / "top"
    (top / "ml").mkdir(parents=True)
    subprocess.run(["git", "init", "-q"], cwd=top, check=True)
    project = DvcProject(top / "ml")
    project.dvc("init", "-q", "--subdir")
    project.write(FILES)
    project.git("add", "..")
    project.git("commit", "-qm", "a project in a subfolder")
    return project


@pytest.fixture
def project(template, tmp_path):
    DvcProject(template.folder.parent).copy(tmp_path / "top")
    return DvcProject(tmp_path / "top/ml")


def _code_versions(project):
    specs = [spec for asset in pipeline_assets(repo=project.folder) for spec in asset.specs]
    return {spec.key.to_user_string(): spec.code_version for spec in specs}


def test_files_beside_the_project_are_code_parameters_and_variables(project):
    def changed(files):
        before = _code_versions(project)
        project.write(files)
        after = _code_versions(project)
        return {key for key in {*before, *after} if before.get(key) != after.get(key)}

    code = {stage.name: stage.code for stage in load_project(project.folder).stages}
    assert code == {"make": ("../src",), "use": ("../src/lib.sh",)}
    assert changed({"../src/lib.sh": "echo lib 2\n"}) == {"make", "use"}
    assert changed({"../src/other.sh": "echo other 2\n"}) == {"make"}
    assert changed({"../src/new.sh": ""}) == {"make"}
    assert changed({"../params.yaml": "size: 2\n"}) == {"make"}
    assert changed({"../conf/vars.yaml": "suffix: csv\n"}) == {"make"}
    assert changed({"../unrelated.yaml": "1\n", "../src.txt": "1\n"}) == set()


def test_a_stage_is_stale_after_a_file_beside_the_project_changed(project):
    with dg.instance_for_test() as instance:
        project.run(instance=instance)
        assets = pipeline_assets(repo=project.folder)
        defs = dg.Definitions(assets, resources={"dvc": project.resource()})
        before = {spec.key: spec.code_version for spec in defs.resolve_all_asset_specs()}
        project.write({"../src/lib.sh": "echo changed\n"})
        after = _code_versions(project)
        assert all(before[dg.AssetKey(key)] != version for key, version in after.items())
        assert set(outcomes(project.run(instance=instance)).values()) == {"executed"}


def test_outputs_beside_the_project_are_committed_and_its_stages_are_not_dirty(project):
    result = facts(project.run(commit=True))
    assert {metadata.get("dvc/dirty", "") for metadata in result.values()} == {""}
    assert project.git("status", "--short", "..") == ""
    committed = project.git("log", "-2", "--format=", "--name-only").split()
    assert sorted(committed) == [
        *("ml/.gitignore", "ml/below/.gitignore", "ml/dvc.lock", "ml/dvc.lock", "plots/u.csv", "report.json"),
    ]
    assert outcomes(project.run(commit=True)) == {"make": "unchanged", "use": "unchanged"}
    DvcProject(project.folder.parent).clone(project.folder.parents[1] / "clone")
    clone = DvcProject(project.folder.parents[1] / "clone/ml")
    assert clone.read("../report.json") == "lib\n"
