"""What others can write into a DVC remote, a pointer or a vendor's repository is data: it neither leads nor lies."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import dagster as dg
import pytest

from dagster_mlops.dvc import DvcResource
from dagster_mlops.dvc.imports import imported_dataset_asset
from dagster_mlops.dvc.tool import DvcTool
from dagster_mlops.errors import DatasetError
from dagster_mlops.provenance import Ref
from tests.support import known_warnings
from tests.support.dvc_projects import DvcProject

pytestmark = [
    pytest.mark.usefixtures("warm_dvc"),
    *known_warnings.DVC,
    *known_warnings.UNCLOSED,
    *known_warnings.DAGSTER_BETA,
]

ONE = hashlib.md5(b"one").hexdigest()
HOOK = "../../.git/hooks/post-checkout"
ALSO = [pytest.param(name, marks=pytest.mark.thorough) for name in ("../up", ".git/config")]


def _object(remote, md5):
    return Path(remote) / "files" / "md5" / md5[:2] / md5[2:]


def _put(remote, content, md5=""):
    """Put an object into the remote as anyone can who may write to it."""
    md5 = md5 or hashlib.md5(content).hexdigest()
    file = _object(remote, md5)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.write_bytes(content)
    file.chmod(0o444)  # DVC takes it for complete by that
    return md5


def _listing(remote, *names, md5=ONE):
    rows = json.dumps([{"md5": md5, "relpath": name} for name in names]).encode()
    return _put(remote, rows, hashlib.md5(rows).hexdigest() + ".dir")


def _files(folder):
    """What is outside of DVC's own folders, with its content."""
    names = [file for file in folder.rglob("*") if file.is_file() and ".dvc" not in file.relative_to(folder).parts]
    return {str(name.relative_to(folder)): name.read_bytes() for name in names}


@pytest.fixture
def dvc(tmp_path):
    dvc = DvcResource(repo=str(tmp_path / "data"), remote_url=str(tmp_path / "remote"))
    dvc.init()
    (dvc.root / "parts").mkdir()
    (dvc.root / "parts" / "a").write_text("one")
    (dvc.root / "x.txt").write_text("one")
    dvc.store("x.txt")
    dvc.store("parts")
    for name in ("parts", ".dvc/cache", ".dvc/tmp/dagster_mlops"):
        shutil.rmtree(dvc.root / name)
    (dvc.root / "x.txt").unlink()
    return dvc


def test_a_name_in_a_list_of_files_never_leads_out_of_its_dataset(dvc, tmp_path):
    before = _files(tmp_path)
    for name in (HOOK, f"ok/{HOOK}", str(tmp_path / "absolute"), ".git/config", "ok/../../../../up", ".GIT/config", ""):
        md5 = _listing(dvc.remote_url, "ok/a", name)
        for _ in range(2):  # with the list in the remote, then in the cache
            with pytest.raises(DatasetError, match="not a name below its folder"):
                dvc.read_path("parts", md5=md5)
    assert {name for name in _files(tmp_path) if not name.startswith("remote")} == {
        name for name in before if not name.startswith("remote")
    }
    assert (dvc.read_path("parts") / "a").read_text() == "one"


def test_a_hash_is_never_a_path(dvc, tmp_path):
    (treasure := tmp_path / "treasure").write_text("gold")
    cache = dvc.root / ".dvc" / "cache" / "files" / "md5"
    away = f"../{os.path.relpath(treasure, cache)}"
    md5 = _listing(dvc.remote_url, "a", md5=away)
    with pytest.raises(DatasetError, match="not a hash as DVC writes it"):
        dvc.read_path("parts", md5=md5)
    with pytest.raises(DatasetError, match="not a hash as DVC writes it"):
        dvc.read_path("x.txt", md5=away)
    answer = DvcTool().resolve(Ref("dvc", "dataset", f"x.txt@{away}", at=dvc.repo))
    assert answer.bucket == "inaccessible" and "not a hash" in str(answer)
    assert treasure.read_text() == "gold", "a damaged object of the cache is deleted"


def test_each_download_is_hashed_and_the_list_before_its_names_are_used(dvc, tmp_path):
    _put(dvc.remote_url, b"two", ONE)  # of the same size
    with pytest.raises(DatasetError, match="holds other bytes under that hash"):
        dvc.read_path("x.txt")
    with pytest.raises(DatasetError, match="holds other bytes under that hash"):
        dvc.read_path("parts")
    _put(dvc.remote_url, b"one")
    shutil.rmtree(dvc.root / ".dvc" / "cache")
    list_md5 = dvc.data_version("parts")
    honest = _object(dvc.remote_url, list_md5).read_bytes()
    _put(dvc.remote_url, honest.replace(b'"a"', b'"b"'), list_md5)
    with pytest.raises(DatasetError, match="holds other bytes under that hash"):
        dvc.read_path("parts")
    _put(dvc.remote_url, honest, list_md5)
    assert _files(dvc.read_path("parts")) == {"a": b"one"}


def _point(root, name, md5):
    """Let the pointer of a dataset name another version, as whoever may push to git can."""
    pointer = root / f"{name}.dvc"
    pointer.write_text(re.sub(r"[0-9a-f]{32}(\.dir)?", md5, pointer.read_text(), count=1))
    subprocess.run(["git", "commit", "-qam", "hostile"], cwd=root, check=True)


@pytest.mark.parametrize("name", [HOOK, *ALSO])
def test_an_import_takes_nothing_from_a_list_that_leads_out(dvc, tmp_path, name):
    _point(dvc.root, "parts", _listing(dvc.remote_url, "ok/a", name))
    mine = DvcResource(repo=str(tmp_path / "mine"))
    mine.init()
    before = _files(tmp_path)
    asset = imported_dataset_asset(path="vendor", url=dvc.repo, source_path="parts", timeout=60)
    with pytest.raises(DatasetError, match=r"cannot be imported: .*not a name below its folder"):
        dg.materialize([asset], resources={"dvc": mine})
    assert _files(tmp_path) == before


def test_an_import_takes_no_other_bytes_than_the_pointer_names(dvc, tmp_path):
    mine = DvcResource(repo=str(tmp_path / "mine"), push=False)
    mine.init()
    _put(dvc.remote_url, b"two", ONE)
    for path in ("x.txt", "parts", "parts/a"):
        asset = imported_dataset_asset(path="vendor", url=dvc.repo, source_path=path, timeout=60)
        with pytest.raises(DatasetError, match="holds other bytes"):
            dg.materialize([asset], resources={"dvc": mine})
    _put(dvc.remote_url, b"one")
    assert dg.materialize([asset], resources={"dvc": mine}).success


@pytest.mark.parametrize("name", ["../.git/hooks/post-checkout", *ALSO])
def test_a_stage_fetches_no_list_that_leads_out(tmp_path, name):
    files = {"parts/a": "one", "dvc.yaml": "stages: {use: {cmd: ls parts > out, deps: [parts], outs: [out]}}"}
    project = DvcProject.new(tmp_path / "project", files, "parts")
    remote = project.remote("storage", default=True)
    project.commit()
    project.dvc("push", "-q")
    _point(project.folder, "parts", _listing(remote, "a", name))
    for folder in ("parts", ".dvc/cache"):
        shutil.rmtree(project.folder / folder)
    config = (project.folder / ".git" / "config").read_bytes()
    assert not project.run(raise_on_error=False, pull=True).success
    assert not (tmp_path / "up").exists() and not (project.folder / "up").exists()
    assert not (project.folder / "parts" / ".git").exists() and config == (project.folder / ".git/config").read_bytes()
    assert not (project.folder / ".git" / "hooks" / "post-checkout").exists()
