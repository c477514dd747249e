"""Where data may go: `push: false` and `remote:` of an output, in dvc.yaml and in pointers."""

import shutil

import dagster as dg
import pytest

from dagster_mlops.dvc import dataset_asset, dataset_checks, dvc_io_manager
from dagster_mlops.dvc.tool import DvcTool
from dagster_mlops.provenance import Accessible, Deleted, Ref
from tests.support import known_warnings
from tests.support.dvc_projects import DvcProject, objects_in, outcomes

pytestmark = [
    pytest.mark.usefixtures("warm_dvc"),
    *known_warnings.DVC,
    *known_warnings.UNCLOSED,
    *known_warnings.DAGSTER_BETA,
]

FILES = {
    "dvc.yaml": """
        vars: [{folder: made}]
        stages:
          make:
            cmd:
            - mkdir -p made/d && printf a > a && printf b > b && printf c > c
            - printf e > made/d/e && printf f > made/f
            outs:
            - a: {push: false}
            - b: {remote: other}
            - c
            - ${folder}/d: {remote: other}
            metrics:
            - ${folder}/f: {push: false}
          use:
            cmd: cat a b c > used
            deps: [a, b, c]
            outs: [{used: {push: false, remote: other}}]
    """
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    project = DvcProject.new(tmp_path_factory.mktemp("destinations") / "project", FILES)
    project.remote("storage", default=True)
    project.remote("other")
    project.commit()
    project.run(commit=True)  # nothing is pushed
    return project


@pytest.fixture
def project(template, tmp_path):
    project = template.copy(tmp_path / "project")
    for name in ("storage", "other"):
        (tmp_path / f"remote-{name}").mkdir()
        project.dvc("remote", "modify", "--local", name, "url", str(tmp_path / f"remote-{name}"))
    return project


def _pushed(project, name):
    folder = project.folder.parent / f"remote-{name}"
    return {file.read_text() for file in folder.rglob("*") if file.is_file() and not file.name.endswith(".dir")}


def test_a_stage_pushes_each_output_where_its_definition_says(project):
    assert outcomes(project.run(push=True)) == {"make": "unchanged", "use": "unchanged"}
    assert (_pushed(project, "storage"), _pushed(project, "other")) == ({"c"}, {"b", "e"})
    # `dvc push` agrees that nothing is left to be pushed, and a colleague gets all of it.
    assert project.dvc("push") == "Everything is up to date."
    clone = project.clone(project.folder.parent / "clone")
    dvc = clone.resource()
    assert [dvc.load(name, str) for name in ("b", "c")] == ["b", "c"]
    assert (dvc.read_path("made/d") / "e").read_text() == "e"
    for name, content in {"a": Deleted, "b": Accessible, "c": Accessible, "made/d": Accessible}.items():
        ref = Ref("dvc", "dataset", f"{name}@{dvc.data_version(name)}", at=str(clone.folder))
        assert isinstance(DvcTool().resolve(ref), content), name


@pytest.mark.parametrize(
    ("option", "storage", "other"),
    [("push: false", set(), set()), ("remote: other", set(), {"mine"}), ("cache: true", {"mine"}, set())],
)
def test_store_pushes_where_the_pointer_says(project, option, storage, other):
    project.write({"x.txt": "first"})
    project.dvc("add", "-q", "x.txt")
    pointer = project.folder / "x.txt.dvc"
    pointer.write_text(pointer.read_text() + f"  {option}\n")
    project.write({"x.txt": "mine"})
    dvc = project.resource(push=True)
    record = dvc.store("x.txt")
    assert (_pushed(project, "storage"), _pushed(project, "other")) == (storage, other)
    assert record.remote.rpartition("-")[2] == ("other" if other else "storage" if storage else "")
    assert option in pointer.read_text()
    if storage or other:
        shutil.rmtree(project.folder / ".dvc/cache")
        (project.folder / "x.txt").unlink()
        assert dvc.load("x.txt", str) == "mine"
    assert isinstance(DvcTool().resolve(record.ref), Accessible)


def test_a_project_without_a_default_remote_pushes_to_the_one_that_outputs_name(project):
    project.dvc("remote", "default", "--unset")
    project.write({"dvc.yaml": "stages: {only: {cmd: printf o > o, outs: [{o: {remote: other}}]}}\n"})
    project.run("only", push=True)
    assert _pushed(project, "other") == {"o"}


def test_the_check_of_the_remote_asks_the_one_that_the_pointer_names_and_none_for_private_data(project):
    @dataset_asset(path="x.txt")
    def x() -> str:
        return "x"

    checks = dataset_checks(asset=x, checks=["remote_has_object"])
    for option in ("push: false", "remote: other"):
        project.write({"x.txt": "first"})
        project.dvc("add", "-q", "x.txt")
        pointer = project.folder / "x.txt.dvc"
        pointer.write_text(pointer.read_text() + f"  {option}\n")
        resources = {"dvc": project.resource(push=True, commit=False), "dvc_io_manager": dvc_io_manager}
        result = dg.materialize([x, *checks], resources=resources)
        assert [evaluation.passed for evaluation in result.get_asset_check_evaluations()] == [True]
        pointer.unlink()
    assert _pushed(project, "other") == {"x"} and objects_in(project.folder.parent / "remote-storage") == set()
