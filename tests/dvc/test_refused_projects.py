"""Projects that DVC would refuse to run are refused when definitions load, with DVC's reason and line."""

import pytest

from dagster_mlops.dvc import pipeline_assets
from dagster_mlops.errors import DatasetError
from tests.support import known_warnings
from tests.support.dvc_projects import DvcProject

pytestmark = [pytest.mark.usefixtures("warm_dvc"), *known_warnings.DVC, *known_warnings.UNCLOSED]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return DvcProject.new(tmp_path_factory.mktemp("refused") / "project", {"data.txt": "1\n"}, "data.txt")


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        # Overlapping outputs.
        ("one: {cmd: a, outs: [x]}\n  two: {cmd: b, outs: [x]}", r"output 'x' is specified in:.*Use `dvc remove`"),
        ("one: {cmd: a, outs: [x]}\n  two: {cmd: b, outs: [x/y]}", r"'x/y'.*overlap|overlap.*'x/y'"),
        ("one: {cmd: a, outs: [data.txt]}", r"output 'data.txt' is specified in"),
        # A circle.
        (
            "one: {cmd: a, deps: [y], outs: [x]}\n  two: {cmd: b, deps: [x], outs: [y]}",
            r"both a dependency and an output in stages: .*(one|two)",
        ),
        (
            "one: {cmd: a, deps: [f], outs: [x]}\n  two: {cmd: b, deps: [x], outs: [y]}"
            "\n  three: {cmd: c, deps: [y], outs: [f/g]}",
            r"both a dependency and an output in stages: .*three",
        ),
        ("one: {cmd: a, deps: [x], outs: [x]}", r"defined as both a dependency and an output in stage: one"),
        # What cannot be read: the line, and what is wrong there.
        ("one: {cmd: a, outs: [x]\n  two: {}", r"'\./dvc.yaml' is invalid.*line 4"),
        ("one: {cmd: a, out: [x]}", r"'\./dvc.yaml' validation failed.*stages -> one.*line 3"),
        ("one:\n    cmd: a\n    deps: x", r"validation failed.*one -> deps.*line 4"),
        ("one: {cmd: 'a ${nowhere}'}", r"Could not find 'nowhere'"),
        ("one: {foreach: [1], do: {cmd: a, oust: [x]}}", r"validation failed.*line 3"),
    ],
)
def test_what_dvc_refuses_is_refused_at_load_with_its_reason(template, tmp_path, stages, reason):
    project = template.copy(tmp_path / "project")
    (project.folder / "dvc.yaml").write_text(f"stages:\n\n  {stages}\n")
    with pytest.raises(DatasetError, match=rf"(?s)DVC cannot read the project .*{reason}") as refused:
        pipeline_assets(repo=project.folder)
    assert "Fix it" in str(refused.value) and "\x1b" not in str(refused.value)


OVERLAPS = {
    "folder/one.txt": "folder.dvc",
    "above": "above/two.txt.dvc",
    "made.txt": "dvc.yaml",
    "out/three.txt": "dvc.yaml",
    "moved/four.txt": "elsewhere.dvc",
    "five.txt": None,  # a repository below has one
    "folder.txt": None,
    "new/folder": None,
}


def test_a_dataset_that_overlaps_an_output_is_refused_as_dvc_add_does(template, tmp_path):
    project = template.copy(tmp_path / "project")
    project.write({"folder/one.txt": "1", "above/two.txt": "2"})
    project.dvc("add", "-q", "folder", "above/two.txt")
    project.write(
        {
            "above/nested/dvc.yaml": "stages: {}",
            "dvc.yaml": "vars: [{name: made}]\nstages: {make: {cmd: a, outs: ['${name}.txt', out]}}\n",
            "moved/four.txt": "4",
            "elsewhere.dvc": "wdir: .\nouts:\n- md5: d41d8cd98f00b204e9800998ecf8427e\n  path: moved\n",
            "sub/.dvc/config": "",
            "sub/five.txt.dvc": "outs:\n- md5: d41d8cd98f00b204e9800998ecf8427e\n  path: five.txt\n",
        }
    )
    dvc = project.resource(commit=False)
    for number in range(2):  # what the first call has read, the second one remembers
        project.write({f"other{number}.txt": "1"})
        dvc.store(f"other{number}.txt")
    for path, file in OVERLAPS.items():
        for name in (path, f"{path}.more"):
            target = project.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.write_text("new")
        if file is None:
            assert dvc.store(path).md5
            continue
        with pytest.raises(DatasetError, match=rf"overlaps with .*, an output of .*{file}.*dvc remove {file}"):
            dvc.store(path)
        assert not (project.folder / f"{path}.dvc").exists()
        if not path.startswith(("folder/", "out/", "moved/")):
            assert dvc.store(f"{path}.more").md5
