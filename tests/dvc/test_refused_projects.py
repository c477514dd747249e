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
