"""What DVC remembers between commands is in a folder that no other user of the machine can write to."""

import os
import stat
import tempfile
from pathlib import Path

import dagster as dg
import pytest

from dagster_mlops.core.site_cache import site_cache, site_cache_variables
from dagster_mlops.dvc import DvcResource, pipeline_assets
from tests.support import known_warnings

pytestmark = [pytest.mark.usefixtures("warm_dvc"), *known_warnings.DAGSTER_BETA]

NOTE = "cmd: python -c \"import os; open('place', 'w').write(os.environ['DVC_SITE_CACHE_DIR'])\""


def test_the_cache_is_in_a_private_folder_of_the_user_in_this_process_and_in_those_of_stages(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    root = tmp_path / "data"
    dvc = DvcResource(repo=str(root), remote_url=str(tmp_path / "remote"))
    dvc.init()
    (root / "numbers.txt").write_text("1\n")
    dvc.store("numbers.txt")
    place = tmp_path / "home" / "dagster_mlops" / "dvc_site_cache"
    with dvc.open() as repo:
        assert Path(repo.site_cache_dir).is_relative_to(place)
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    (root / "dvc.yaml").write_text(f"stages:\n  note:\n    {NOTE}\n    outs: [place]\n")
    assets = pipeline_assets(repo=root)
    assert dg.materialize(assets, resources={"dvc": DvcResource(repo=str(root), commit=False, push=False)}).success
    assert (root / "place").read_text() == str(place)


def test_a_cache_that_the_user_chose_stays_in_use(tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert site_cache(tmp_path / "below") == str(tmp_path / "home" / "dagster_mlops" / "dvc_site_cache")
    assert site_cache(Path("/")) == "" and site_cache_variables(Path("/")) == {}
    (tmp_path / ".dvc" / "config.local").write_text("[core]\n    site_cache_dir = /srv/dvc\n")
    assert site_cache(tmp_path) == "", "DVC reads it"
    assert site_cache_variables(tmp_path / "below") == {"DVC_SITE_CACHE_DIR": "/srv/dvc"}, "also for clones of others"
    (tmp_path / ".dvc" / "config.local").unlink()
    (tmp_path / ".dvc" / "config").write_text('["core"]\n  site_cache_dir = "/srv/d v#c"  # ours\n')
    assert site_cache_variables(tmp_path) == {"DVC_SITE_CACHE_DIR": "/srv/d v#c"}
    (tmp_path / ".dvc" / "config").unlink()
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", "/srv/dvc")
    assert site_cache(tmp_path) == "" and site_cache_variables(tmp_path) == {}


def test_a_user_without_a_home_has_the_cache_in_the_repository(tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "home").write_text("no folder can be made here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    place = Path(site_cache(tmp_path))
    assert place == tmp_path / ".dvc" / "tmp" / "dagster_mlops" / "site_cache"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


@pytest.mark.parametrize(("folder", "mode"), [("home", 0o775), ("home", 0o777), ("cache", 0o770), ("cache", 0o777)])
def test_a_folder_that_others_can_write_to_is_not_used(monkeypatch, folder, mode):
    # pytest's folders are closed to others, and so is what is below.
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        root.chmod(0o711)
        home, place = root / "home", root / "home" / "dagster_mlops" / "dvc_site_cache"
        place.mkdir(parents=True)
        place.chmod(0o755)
        (root / ".dvc").mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        assert site_cache(root) == str(place)
        {"home": home, "cache": place}[folder].chmod(mode)
        assert site_cache(root) == str(root / ".dvc" / "tmp" / "dagster_mlops" / "site_cache")


def test_the_umask_does_not_open_the_cache(tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(0o002)
    try:
        place = Path(site_cache(tmp_path))
    finally:
        os.umask(before)
    assert [stat.S_IMODE(f.stat().st_mode) for f in (place, place.parent, place.parent.parent)] == [0o700] * 3


def test_a_user_with_neither_a_home_nor_a_repository_to_write_to_shares_no_cache(tmp_path, monkeypatch):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "tmp").write_text("no folder can be made here")
    (tmp_path / ".dvc" / "config").write_text("[core]\n# site_cache_dir = /srv/dvc\n")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.chdir(tmp_path)
    place = Path(site_cache(tmp_path))
    assert place.is_absolute() and stat.S_IMODE(place.stat().st_mode) == 0o700
    assert not (tmp_path / "relative").exists() and site_cache(tmp_path) == str(place)
