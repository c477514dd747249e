"""What a person wrote is never replaced: conflicts, edits by hand, edited data. What a kill cut off is repaired."""

import shutil

import dagster as dg
import pytest

from dagster_mlops.dvc import pipeline_assets
from dagster_mlops.dvc.tool import DvcTool
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Accessible, Dataset, records_in
from tests.support import known_warnings
from tests.support.dvc_projects import DvcProject, facts, objects_in, outcomes

pytestmark = [
    pytest.mark.usefixtures("warm_dvc"),
    *known_warnings.DVC,
    *known_warnings.UNCLOSED,
    *known_warnings.DAGSTER_BETA,
]

FILES = {
    "params.yaml": "a: 1\nb: 1\n",
    "dvc.yaml": """
        stages:
          a: {cmd: 'cat raw.txt > a.txt && echo ${a} >> a.txt', deps: [raw.txt], outs: [a.txt]}
          b: {cmd: 'cat a.txt > b.txt && echo ${b} >> b.txt', deps: [a.txt], outs: [b.txt]}
          c: {cmd: 'cat old/x.txt folder/one.txt > c.txt', deps: [old, folder/one.txt], outs: [c.txt]}
          old: {frozen: true, cmd: mkdir old && echo old > old/x.txt, outs: [old]}
    """,
    "raw.txt": "raw\n",
    "folder/one.txt": "one\n",
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    project = DvcProject.new(tmp_path_factory.mktemp("hand") / "project", FILES, "raw.txt", "folder")
    project.write({"old/x.txt": "old\n"})
    project.dvc("commit", "-q", "-f", "old")
    project.commit("old")
    project.run(commit=True)
    return project


@pytest.fixture
def project(template, tmp_path):
    return template.copy(tmp_path / "project")


def _refused(project, match, *keys, **options):
    before = {name: (project.folder / name).read_bytes() for name in ("dvc.lock", "raw.txt.dvc")}
    head = project.git("rev-parse", "HEAD")
    with pytest.raises((dg.Failure, DatasetError), match=match) as refused:
        project.run(*keys, **options)
    assert {name: (project.folder / name).read_bytes() for name in before} == before
    assert project.git("rev-parse", "HEAD") == head
    return refused.value


@pytest.mark.parametrize(
    "state",
    [
        "markers",
        pytest.param("resolved, not added", marks=pytest.mark.thorough),
        pytest.param("resolved", marks=pytest.mark.thorough),
    ],
)
def test_the_conflict_of_a_merge_is_the_users_to_resolve(project, state):
    project.git("checkout", "-q", "-b", "theirs")
    project.write({"params.yaml": "a: 1\nb: 2\n"})
    project.run("b", commit=True)
    project.commit("theirs")
    project.git("checkout", "-q", "-b", "ours", "HEAD~2")
    project.write({"params.yaml": "a: 1\nb: 3\n"})
    project.run("b", commit=True)
    project.commit("ours")
    assert "dvc.lock" in project.git("merge", "theirs", check=False)
    project.git("checkout", "--ours", "params.yaml")
    project.git("add", "params.yaml")
    if state != "markers":
        project.git("checkout", "--theirs", "dvc.lock")
    if state != "resolved":
        for stage in ("a", "b"):  # `b` would be executed
            refusal = _refused(project, r"dvc.lock", stage, commit=True)
            assert "git add dvc.lock" in str(refusal)
        assert "dvc.lock" in project.git("diff", "--name-only", "--diff-filter=U")
    project.git("checkout", "--theirs", "dvc.lock", check=False)
    project.git("add", "dvc.lock")
    assert outcomes(project.run("a", "b", commit=True)) == {"a": "unchanged", "b": "restored"}
    project.git("commit", "-qm", "merge")
    assert set(project.yaml("dvc.lock")["stages"]) == {"a", "b", "c", "old"}


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("  a:\n", "  a\n", 1),
        lambda text: text.replace("    outs:\n", "\touts:\n", 1),
        lambda text: "- not a mapping\n",
        lambda text: text + "  d: [\n",
        lambda text: text.replace("schema: '2.0'", "schema: '2.0", 1),
    ],
    ids=["a colon", "a tab", "a list", "a bracket", "a quote"],
)
def test_a_lock_file_that_a_person_broke_is_refused_with_the_line(project, edit):
    lock = project.folder / "dvc.lock"
    lock.write_text(edit(lock.read_text()))
    refusal = _refused(project, r"dvc.lock cannot be read: line \d+: ", "a", commit=True)
    assert "git checkout HEAD -- dvc.lock" in str(refusal)


@pytest.mark.parametrize(
    "text", ["<<<<<<< HEAD\nouts:\n=======\nouts: []\n>>>>>>> theirs\n", "outs: [\n", "meta: {}\n"]
)
def test_a_pointer_that_a_person_broke_is_refused(project, text):
    project.write({"raw.txt.dvc": text})
    project.write({"new.txt": "new\n"})
    with pytest.raises(DatasetError, match=r"raw.txt.dvc.*(`git add raw.txt.dvc`|`git checkout HEAD -- raw.txt.dvc`)"):
        project.resource().store("raw.txt", source=project.folder / "new.txt")
    assert project.read("raw.txt.dvc") == text and project.read("raw.txt") == "raw\n"


@pytest.mark.parametrize("cut", [0, 20, 40])
def test_a_pointer_that_a_kill_cut_off_still_says_where_its_data_may_go(project, cut):
    storage = project.remote("storage", default=True)
    pointer = project.folder / "raw.txt.dvc"
    pointer.write_text(pointer.read_text() + "  push: false\n")
    project.commit("private")
    pointer.write_text(pointer.read_text()[:cut])
    project.write({"raw.txt": "secret\n"})
    project.resource(push=True).store("raw.txt")
    assert "push: false" in project.git("show", "HEAD:raw.txt.dvc") and objects_in(storage) == set()


@pytest.mark.parametrize("kept", [0, 0.3, 0.8])
def test_what_a_kill_cut_off_is_repaired_and_its_remains_are_kept(project, kept):
    lock = project.folder / "dvc.lock"
    whole = lock.read_text()
    cut = int(len(whole) * kept)
    while cut and (whole[cut - 1] in "\n :" or ":" in whole[:cut].rpartition("\n")[2]):
        cut -= 1  # in the middle of a word without a colon: it is no YAML
    lock.write_text(whole[:cut])
    assert set(outcomes(project.run("a", "b", commit=True)).values()) == {"unchanged"}
    assert lock.read_text() == whole
    [remains] = (project.folder / ".dvc/tmp/dagster_mlops/cut_off").iterdir()
    assert remains.read_text() == whole[:cut]


@pytest.mark.parametrize(
    "edited",
    [
        "raw.txt",
        pytest.param("folder/one.txt", marks=pytest.mark.thorough),
        pytest.param("old/x.txt", marks=pytest.mark.thorough),
    ],
)
def test_edited_data_becomes_a_version_before_a_stage_reads_it_as_with_dvc_repro(project, tmp_path, edited):
    stage = "a" if edited == "raw.txt" else "c"
    storage = project.remote("storage", default=True)
    project.commit("remote")
    project.dvc("push", "-q")
    twin = project.copy(tmp_path / "twin")
    for each in (project, twin):
        each.write({edited: "edited\n"})
    twin.dvc("repro", stage)
    with dg.instance_for_test() as instance:
        result = project.run(stage, instance=instance, commit=True, push=True)
    assert outcomes(result) == {stage: "executed"}
    for name in ("dvc.lock", "raw.txt.dvc", "folder.dvc"):
        assert project.yaml(name) == twin.yaml(name), name
    assert project.git("status", "--short") == ""
    assert project.dvc("status") == twin.dvc("status")
    [record, *_] = records_in(result.get_asset_materialization_events()[0].materialization.metadata)
    assert isinstance(record, Dataset)
    read = [ref for ref in record.upstream if ref.tool == "dvc"]
    assert read and all(isinstance(DvcTool().resolve(ref), Accessible) for ref in read)
    # A colleague gets the edited bytes.
    assert objects_in(storage) >= {ref.id.rpartition("@")[2] for ref in read if "folder/one" not in ref.id}
    clone = project.clone(tmp_path / "clone")
    assert set(outcomes(clone.run(stage, commit=True)).values()) == {"unchanged"}
    assert clone.read(edited) == "edited\n"


def test_observing_edited_data_reports_what_stages_would_read(project):
    [observed] = [asset for asset in pipeline_assets(repo=project.folder) if not asset.is_materializable]
    job = dg.Definitions([observed], resources={"dvc": project.resource()}).resolve_implicit_global_asset_job_def()

    def versions():
        events = job.execute_in_process().get_asset_observation_events()
        observations = [event.asset_observation_data.asset_observation for event in events]
        return {o.asset_key.to_user_string(): (o.tags["dagster/data_version"], o.metadata) for o in observations}

    before = versions()
    project.write({"raw.txt": "edited\n", "old/x.txt": "edited\n"})
    after = versions()
    changed = {key for key, (version, _) in after.items() if version != before[key][0]}
    assert changed == {"raw_txt", "old"}
    assert after["raw_txt"][1]["dvc/edited"].value == ["raw.txt"] and "dvc/edited" not in after["folder"][1]
    project.run("a", "c", commit=True)
    assert {key: version for key, (version, _) in versions().items()} == {k: v for k, (v, _) in after.items()}


@pytest.mark.parametrize("force", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_an_edited_output_of_another_stage_is_refused_with_what_to_do(project, force):
    (project.folder / "a.txt").write_text("edited\n")
    refusal = _refused(project, r"a.txt was edited after stage a made it", "b")
    assert "dvc checkout a.txt" in str(refusal) and "dvc commit a" in str(refusal)
    assert outcomes(project.run("a", "b")) == {"a": "restored", "b": "unchanged"}
    (project.folder / "a.txt").write_text("edited\n")
    project.dvc("commit", "-q", "-f", "a")
    assert outcomes(project.run("b")) == {"b": "executed"}


def test_data_that_is_not_in_the_workspace_is_fetched_and_not_an_edit(project):
    (project.folder / "raw.txt").unlink()
    shutil.rmtree(project.folder / "folder")
    head = project.git("rev-parse", "HEAD")
    assert set(outcomes(project.run("a", "c", commit=True)).values()) == {"unchanged"}
    assert project.git("rev-parse", "HEAD") == head and "dvc/edited" not in facts(project.run("a"))["a"]
