"""Versions that a kill or a rewritten history left behind: pushed later, and accessible as long as they are kept."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from dagster_mlops.dvc.tool import DvcTool
from dagster_mlops.provenance import Accessible, Deleted, Faulty, Ref
from tests.support import known_warnings
from tests.support.dvc_projects import DvcProject, objects_in, outcomes

pytestmark = [
    pytest.mark.usefixtures("warm_dvc"),
    *known_warnings.DVC,
    *known_warnings.UNCLOSED,
    *known_warnings.DAGSTER_BETA,
]

FILES = {
    "params.yaml": "a: 1\n",
    "dvc.yaml": """
        stages:
          a: {cmd: 'echo ${a} > a.txt', outs: [a.txt]}
          b: {cmd: 'cat x.txt > b.txt && echo b >> b.txt', deps: [x.txt], outs: [b.txt]}
    """,
    "x.txt": "one\n",
}
MD5 = "26ab0db90d72e28ad0ba1e22ee510510"  # of "2\n"
SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from tests.support.dvc_projects import DvcProject
DvcProject(Path(sys.argv[1])).run("a", push=True, commit=True)
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    project = DvcProject.new(tmp_path_factory.mktemp("left") / "project", FILES, "x.txt")
    project.remote("storage", default=True)
    project.commit()
    project.run(commit=True)
    return project


@pytest.fixture
def project(template, tmp_path):
    project = template.copy(tmp_path / "project")
    project.dvc("remote", "modify", "--local", "storage", "url", str(tmp_path / "remote-storage"))
    (tmp_path / "remote-storage").mkdir()
    return project


@pytest.mark.thorough
@pytest.mark.parametrize("next_stage", ["a", "b"])
def test_a_result_that_a_killed_step_did_not_push_is_pushed_by_the_next_step(project, next_stage):
    remote = project.folder.parent / "remote-storage"
    project.write({"params.yaml": "a: 2\n"})
    command, here = [sys.executable, "-c", SCRIPT, str(project.folder)], Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=here, start_new_session=True)
    deadline = time.monotonic() + 60
    while MD5 not in project.read("dvc.lock"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert objects_in(remote) == set()
    project.write({"params.yaml": "a: 3\n"})  # its inputs move on
    project.run(next_stage, push=True, commit=True)
    assert MD5 in objects_in(remote)
    assert list((project.folder / ".dvc/tmp/dagster_mlops/unshared").iterdir()) == []


def test_a_note_of_a_stage_that_is_gone_or_was_never_run_is_dropped(project):
    notes = project.folder / ".dvc/tmp/dagster_mlops/unshared"
    notes.mkdir(parents=True, exist_ok=True)
    for name in ("gone", "other/dvc.yaml:gone", "b"):
        (notes / quote(name, safe="")).touch()
    assert outcomes(project.run("a", push=True)) == {"a": "unchanged"}
    assert list(notes.iterdir()) == []
    # Of a, and of b, which was noted, with the data that it reads: a kill may have come before that was pushed.
    assert len(objects_in(project.folder.parent / "remote-storage")) == 3


def _ref(project, path, md5):
    return Ref("dvc", "dataset", f"{path}@{md5}", at=str(project.folder))


@pytest.mark.parametrize("path", ["a.txt", pytest.param("x.txt", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("kept_in", ["remote", pytest.param("cache", marks=pytest.mark.thorough)])
def test_content_is_accessible_after_history_was_squashed(project, path, kept_in):
    dvc = project.resource(push=True)
    old = dvc.data_version(path)
    project.dvc("push", "-q")
    if path == "x.txt":
        project.write({"x.txt": "two\n"})
        dvc.store("x.txt")
    else:
        project.write({"params.yaml": "a: 2\n"})
        project.run("a", commit=True)
    project.git("checkout", "-q", "--orphan", "squashed")
    project.commit("all of it")
    for branch in project.git("branch", "--format=%(refname:short)").split():
        if branch != "squashed":
            project.git("branch", "-qD", branch)
    if kept_in == "remote":
        shutil.rmtree(project.folder / ".dvc/cache")
    answer = DvcTool().resolve(_ref(project, path, old))
    assert isinstance(answer, Accessible) and answer.record.ref == _ref(project, path, old)
    assert dvc.read_path(path, md5=old).read_text() in ("one\n", "1\n")
    assert isinstance(DvcTool().resolve(_ref(project, path, "0" * 32)), Faulty | Deleted)
    assert isinstance(DvcTool().resolve(_ref(project, "never.txt", old)), Deleted)
