"""Commits of a stage's results: what `git add` would commit of outputs that DVC does not cache, and nothing else."""

import dataclasses
import subprocess

import pytest

from dagster_mlops.dvc.tool import DvcTool
from dagster_mlops.provenance import Accessible, Deleted, records_in
from tests.support import known_warnings
from tests.support.dvc_projects import DvcProject, facts, outcomes

pytestmark = [
    pytest.mark.usefixtures("warm_dvc"),
    *known_warnings.DVC,
    *known_warnings.UNCLOSED,
    *known_warnings.DAGSTER_BETA,
]

FILES = {
    "make.sh": """
        mkdir -p out/below && printf 'm\\r\\n' > out/m.json && printf t > out/t.txt
        printf '#!/bin/sh\\n' > out/run.sh && chmod +x out/run.sh
        ln -sfn t.txt out/latest && ln -sfn below out/folder && printf x > out/below/x.log
        ln -sfn out/t.txt link
        head -c 1000001 /dev/zero > out/large.bin
    """,
    "dvc.yaml": """
        stages:
          make:
            cmd: sh make.sh && printf c > cached.txt
            deps: [make.sh]
            outs: [cached.txt, {out: {cache: false}}]
            metrics: [{link: {cache: false}}]
    """,
    ".gitignore": "*.log\n/secret.json",  # without an end of line
    ".gitattributes": "*.json filter=loud\n",
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    project = DvcProject.new(tmp_path_factory.mktemp("commits") / "project", FILES)
    project.git("config", "filter.loud.clean", "tr a-z A-Z")
    project.run(commit=True)
    return project


@pytest.fixture
def project(template, tmp_path):
    return template.copy(tmp_path / "project")


def _tree(project) -> dict[str, str]:
    rows = (row.split(None, 3) for row in project.git("ls-tree", "-r", "HEAD").splitlines())
    return {name: mode for mode, _, _, name in rows}


def test_ignore_rules_filters_modes_and_links_are_gits(project):
    assert _tree(project) == {
        ".dvc/.gitignore": "100644",
        ".dvc/config": "100644",
        ".dvcignore": "100644",
        ".gitattributes": "100644",
        ".gitignore": "100644",
        "dvc.lock": "100644",
        "dvc.yaml": "100644",
        "link": "120000",
        "make.sh": "100644",
        "out/folder": "120000",
        "out/latest": "120000",
        "out/m.json": "100644",
        "out/run.sh": "100755",
        "out/t.txt": "100644",
    }
    blob = subprocess.run(["git", "show", "HEAD:out/m.json"], cwd=project.folder, capture_output=True, check=True)
    assert blob.stdout == b"M\r\n"
    assert project.git("show", "HEAD:.gitignore") == "*.log\n/secret.json\n/cached.txt"
    assert project.git("status", "--short") == "?? out/large.bin"  # the limit


@pytest.mark.parametrize(
    ("change", "gone", "new"),
    [
        ("rm out/m.json", {"out/m.json"}, {}),
        ("rm -r out && mkdir out && echo 1 > out/t.txt", {"out"}, {"out/t.txt": "100644"}),
        ("rm -r out/run.sh && mkdir out/run.sh && echo 1 > out/run.sh/x", {"out/run.sh"}, {"out/run.sh/x": "100644"}),
        ("rm out/latest && echo 1 > out/latest", {"out/latest"}, {"out/latest": "100644"}),
        ("chmod -x out/run.sh", {"out/run.sh"}, {"out/run.sh": "100644"}),
    ],
)
def test_what_vanished_or_changed_its_kind_is_so_in_the_commit(project, change, gone, new):
    before = _tree(project)
    (project.folder / "make.sh").write_text(project.read("make.sh") + f"rm out/large.bin\n{change}\n")
    project.git("commit", "-qam", "code")
    assert outcomes(project.run(commit=True)) == {"make": "executed"}
    kept = {name: mode for name, mode in before.items() if not any(f"{name}/".startswith(f"{g}/") for g in gone)}
    assert _tree(project) == {**kept, **new}
    assert project.git("status", "--short") == ""


@pytest.mark.thorough
def test_a_clone_executes_nothing(project, tmp_path):
    (project.folder / "make.sh").write_text(
        "mkdir -p out && rm -rf out/* && echo 1 > out/new.txt && ln -s out/new.txt link"
    )
    project.remote("storage", default=True)
    project.git("commit", "-qam", "code")
    project.run(commit=True, push=True)
    clone = project.clone(tmp_path / "clone")
    assert outcomes(clone.run(commit=True)) == {"make": "unchanged"}


def test_an_output_that_git_ignores_is_never_committed_and_one_that_it_tracks_always(project):
    project.write(
        {
            "dvc.yaml": """
                stages:
                  make:
                    cmd: printf 1 > secret.json && printf 2 > tracked.log
                    metrics: [{secret.json: {cache: false}}, {tracked.log: {cache: false}}]
            """,
            "tracked.log": "1",
        }
    )
    project.git("add", "-f", "tracked.log", "dvc.yaml")
    project.git("commit", "-qm", "ignored outputs")
    project.run(commit=True)
    assert "secret.json" not in _tree(project)
    assert project.git("show", "HEAD:tracked.log") == "2"


def test_a_stage_of_a_clean_checkout_is_not_dirty(tmp_path):
    files = {
        "work.py": "print(1)\n",
        "dvc.yaml": """
            stages:
              one: {cmd: echo 1 > one.json, metrics: [{one.json: {cache: false}}], deps: [work.py]}
              two: {cmd: echo 2 > below/two.txt, outs: [below/two.txt], deps: [one.json]}
              three: {cmd: echo 3 > three.json, outs: [{three.json: {cache: false}}], deps: [below/two.txt]}
        """,
        "below/.gitkeep": "",
    }
    project = DvcProject.new(tmp_path / "project", files)
    for commit in (False, True):  # without commits, what the stages made stays in the way
        result = facts(project.run(commit=commit))
        assert {key: metadata.get("dvc/dirty", "") for key, metadata in result.items()} == dict.fromkeys(result, "")
    project.write({"work.py": "print(2)\n"})
    assert all(metadata["dvc/dirty"] for metadata in facts(project.run(commit=True)).values())


@pytest.mark.parametrize("versioned", ["a repository of its own", "a folder of another one, without git"])
def test_a_project_without_git_commits_nothing_into_a_checkout_around_it(tmp_path, versioned):
    around = tmp_path / "around"
    around.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=around, check=True)
    project = DvcProject(around / "project")
    project.folder.mkdir()
    project.dvc("init", "-q", *(["--no-scm"] if "without" in versioned else ["--subdir"]))
    project.write({"dvc.yaml": "stages: {make: {cmd: echo 1 > a.txt, outs: [a.txt]}}\n"})
    assert project.run(commit=True).success
    commits = project.git("rev-list", "--all", "--count", check=False)
    assert commits == ("0" if "without" in versioned else "1")


def test_a_version_that_git_keeps_is_accessible_and_read_from_its_commit(tmp_path):
    files = {
        "n.txt": "1",
        "dvc.yaml": """
            stages:
              make: {cmd: 'printf "$(cat n.txt)\\r\\n" > m.txt', deps: [n.txt], metrics: [{m.txt: {cache: false}}]}
              use: {cmd: cat m.txt > u.txt, deps: [m.txt], outs: [u.txt]}
        """,
        ".gitattributes": "m.txt text eol=crlf\n",
    }
    project = DvcProject.new(tmp_path / "project", files)
    refs = []
    for number in ("1", "2"):
        project.write({"n.txt": number})
        event = project.run(commit=True).get_asset_materialization_events()[-1]
        [record, *_] = records_in(event.materialization.metadata)
        refs += [ref for ref in record.upstream if ref.tool == "dvc"]
    assert len({ref.id for ref in refs}) == 2
    for ref, content in zip(refs, (b"1\r\n", b"2\r\n"), strict=True):
        assert isinstance(DvcTool().resolve(ref), Accessible)
        path, _, md5 = ref.id.rpartition("@")
        assert project.resource().read_path(path, md5=md5).read_bytes() == content
    gone = dataclasses.replace(refs[0], id=f"m.txt@{'0' * 32}")
    assert isinstance(DvcTool().resolve(gone), Deleted)
