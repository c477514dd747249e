"""Data that DVC 2 versioned: pointers without an algorithm, hashes of text with Unix line ends, a store of its own."""

import hashlib
import json
import shutil
from pathlib import Path

import dagster as dg
import pytest

from dagster_mlops.dvc import DvcResource, dataset_asset, dataset_checks, dvc_io_manager, observed_dataset_assets
from dagster_mlops.dvc.history.versions import history, restore
from dagster_mlops.dvc.tool import DvcTool
from dagster_mlops.provenance import Accessible, Deleted, Faulty, Ref, records_in
from tests.support import known_warnings
from tests.support.dvc_projects import DvcProject, objects_in, outcomes

pytestmark = [
    pytest.mark.usefixtures("warm_dvc"),
    *known_warnings.DVC,
    *known_warnings.UNCLOSED,
    *known_warnings.DAGSTER_BETA,
]

FILE, CRLF, BINARY = b"a\n1\n", b"a\r\n1\r\n", b"\0\r\n"


def _md5(content: bytes) -> str:
    """The hash of DVC 2."""
    return hashlib.md5(content if b"\0" in content else content.replace(b"\r\n", b"\n")).hexdigest()


def _put(store: Path, md5: str, content: bytes) -> None:
    file = store / md5[:2] / md5[2:]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _version(store: Path, content: bytes | dict[str, bytes]) -> tuple[str, int]:
    """Store what DVC 2 would have stored; returns hash and size."""
    if isinstance(content, bytes):
        _put(store, _md5(content), content)
        return _md5(content), len(content)
    for part in content.values():
        _put(store, _md5(part), part)
    listing = json.dumps([{"md5": _md5(part), "relpath": name} for name, part in sorted(content.items())])
    md5 = f"{hashlib.md5(listing.encode()).hexdigest()}.dir"
    _put(store, md5, listing.encode())
    return md5, sum(map(len, content.values()))


CONTENTS = {
    "text": FILE,
    "text with the line ends of Windows": CRLF,
    "binary": BINARY,
    "folder": {"one.csv": CRLF, "below/two.bin": BINARY},
}
QUICK = {("text", "cache"), ("folder", "cache"), ("text with the line ends of Windows", "remote"), ("folder", "remote")}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    project = DvcProject.new(tmp_path_factory.mktemp("legacy") / "project", {"readme": ""})
    project.remote("storage", default=True)
    project.commit()
    return project


@pytest.fixture
def project(template, tmp_path):
    project = template.copy(tmp_path / "project")
    (tmp_path / "remote-storage").mkdir()
    project.dvc("remote", "modify", "storage", "url", str(tmp_path / "remote-storage"))
    return project


def _tracked(project, content, *, into="cache") -> tuple[str, str]:
    store = project.folder / ".dvc/cache" if into == "cache" else project.folder.parent / "remote-storage"
    md5, size = _version(store, content)
    project.write({"x.csv.dvc": f"outs:\n- md5: {md5}\n  size: {size}\n  path: x.csv\n"})
    project.commit("as DVC 2 did")
    return md5, project.git("rev-parse", "HEAD")


def _content(place: Path) -> bytes | dict[str, bytes]:
    if place.is_file():
        return place.read_bytes()
    return {file.relative_to(place).as_posix(): file.read_bytes() for file in place.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("content", "into"),
    [
        pytest.param(
            CONTENTS[name], into, id=f"{into}-{name}", marks=() if (name, into) in QUICK else pytest.mark.thorough
        )
        for into in ("cache", "remote")
        for name in CONTENTS
    ],
)
def test_a_version_of_dvc_2_is_read_by_pointer_hash_and_revision_and_is_accessible(project, content, into):
    md5, commit = _tracked(project, content, into=into)
    dvc = project.resource()
    ref = Ref("dvc", "dataset", f"x.csv@{md5}", at=str(project.folder))
    answer = DvcTool().resolve(ref)
    # Only this machine has what is not in the remote; as for data of DVC 3, it is accessible.
    assert isinstance(answer, Accessible)
    assert _content(dvc.read_path("x.csv")) == content
    project.git("rm", "-q", "x.csv.dvc")
    project.git("commit", "-qm", "gone")
    assert _content(dvc.read_path("x.csv", md5=md5)) == content
    assert _content(dvc.read_path("x.csv", rev=commit)) == content
    assert isinstance(DvcTool().resolve(ref), Accessible)
    shutil.rmtree(project.folder / ".dvc/cache")
    shutil.rmtree(project.folder / ".dvc/tmp")
    assert isinstance(DvcTool().resolve(ref), Accessible if into == "remote" else Deleted)


def test_a_damaged_object_of_dvc_2_is_fetched_again_and_wrong_bytes_are_faulty(project):
    md5, _ = _tracked(project, CRLF, into="remote")
    dvc = project.resource()
    assert dvc.read_path("x.csv").read_bytes() == CRLF
    shutil.rmtree(project.folder / ".dvc/tmp")  # the copy
    cached = project.folder / ".dvc/cache" / md5[:2] / md5[2:]
    cached.chmod(0o644)
    cached.write_bytes(b"b\n")
    assert dvc.read_path("x.csv").read_bytes() == CRLF
    _put(project.folder.parent / "remote-storage", md5, b"wrong\n")
    answer = DvcTool().resolve(Ref("dvc", "dataset", f"x.csv@{md5}", at=str(project.folder)))
    assert isinstance(answer, Faulty)


def test_storing_the_same_bytes_changes_nothing_and_other_bytes_are_a_version_of_dvc_3(project):
    md5, commit = _tracked(project, CRLF)
    dvc = project.resource(push=True)
    (project.folder / "x.csv").write_bytes(CRLF)
    assert dvc.store("x.csv").md5 == md5
    assert project.git("rev-parse", "HEAD:x.csv.dvc") == project.git("rev-parse", f"{commit}:x.csv.dvc")
    assert objects_in(project.folder.parent / "remote-storage") == {md5}
    (project.folder / "x.csv").write_bytes(b"b\r\n")
    new = dvc.store("x.csv")
    assert new.md5 == hashlib.md5(b"b\r\n").hexdigest()
    assert project.yaml("x.csv.dvc")["outs"][0]["hash"] == "md5"
    assert project.dvc("status", "-q", check=False) == ""
    assert [version.dataset.md5 for version in history(dvc, "x.csv")] == [new.md5, md5]
    # A colleague's DVC brings both.
    clone = project.clone(project.folder.parent / "clone")
    clone.dvc("remote", "modify", "storage", "url", str(project.folder.parent / "remote-storage"))
    clone.dvc("pull", "-q")
    assert (clone.folder / "x.csv").read_bytes() == b"b\r\n"


def test_a_version_of_dvc_2_is_restored(project):
    md5, _ = _tracked(project, CRLF)
    dvc = project.resource()
    (project.folder / "x.csv").write_bytes(b"b\n")
    dvc.store("x.csv")
    record = restore(dvc, "x.csv", md5)
    assert (project.folder / "x.csv").read_bytes() == CRLF
    assert dvc.data_version("x.csv") == record.md5


def test_assets_load_and_check_data_of_dvc_2(project):
    _tracked(project, CRLF)
    observed = observed_dataset_assets(datasets={"prices": "x.csv"})

    @dg.asset(ins={"prices": dg.AssetIn(input_manager_key="dvc_io_manager")})
    def sizes(prices: bytes) -> int:
        return len(prices)

    checks = dataset_checks(asset="prices", checks=["cache_intact", "pointer_matches_data"])
    (project.folder / "x.csv").write_bytes(CRLF)
    with dg.instance_for_test() as instance:
        resources = {"dvc": project.resource(), "dvc_io_manager": dvc_io_manager}
        defs = dg.Definitions([observed, sizes], asset_checks=checks, resources=resources)
        job = defs.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey("prices")])
        assert result.success
        assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())
        loaded = job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey("sizes")])
        assert loaded.output_for_node("sizes") == len(CRLF)


def test_a_pipeline_that_dvc_2_ran_is_unchanged_and_its_outputs_are_pushed_to_its_store(project):
    md5, size = _version(project.folder / ".dvc/cache", CRLF)
    (project.folder / "out.csv").write_bytes(CRLF)
    project.write(
        {
            "dvc.yaml": "stages: {make: {cmd: printf 'a' > out.csv, outs: [out.csv]}}\n",
            "dvc.lock": f"""
                schema: '2.0'
                stages:
                  make:
                    cmd: printf 'a' > out.csv
                    outs:
                    - path: out.csv
                      md5: {md5}
                      size: {size}
            """,
            ".gitignore": "/out.csv\n",
        }
    )
    project.commit("a pipeline of DVC 2")
    result = project.run(push=True)
    assert outcomes(result) == {"make": "unchanged"}
    assert objects_in(project.folder.parent / "remote-storage") == {md5}
    assert isinstance(DvcTool().resolve(Ref("dvc", "dataset", f"out.csv@{md5}", at=str(project.folder))), Accessible)


def test_a_stage_that_dvc_3_runs_names_its_inputs_as_dvc_2_versioned_them(project):
    md5, _ = _tracked(project, CRLF)
    (project.folder / "x.csv").write_bytes(CRLF)
    project.write({"dvc.yaml": "stages: {make: {cmd: cp x.csv y.csv, deps: [x.csv], outs: [y.csv]}}\n"})
    for _ in range(2):
        [event] = project.run(commit=True).get_asset_materialization_events()
        [record, *_] = records_in(event.materialization.metadata)
        [ref] = [ref for ref in record.upstream if ref.tool == "dvc"]
        assert ref.id == f"x.csv@{md5}" and isinstance(DvcTool().resolve(ref), Accessible)
        assert isinstance(DvcTool().resolve(record.ref), Accessible)


def test_a_dataset_asset_over_a_pointer_of_dvc_2_keeps_the_version_of_equal_bytes(project):
    md5, _ = _tracked(project, FILE)

    @dataset_asset(path="x.csv")
    def prices() -> bytes:
        return FILE

    with dg.instance_for_test() as instance:
        resources = {"dvc": DvcResource(repo=str(project.folder)), "dvc_io_manager": dvc_io_manager}
        assert dg.materialize([prices], resources=resources, instance=instance).success
    assert project.resource().data_version("x.csv") == md5
    assert objects_in(project.folder.parent / "remote-storage") == {md5}
