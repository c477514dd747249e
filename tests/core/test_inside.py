"""Names from data never lead out of their folder."""

from pathlib import Path

import pytest

from dagster_mlops.core.inside import inside, plain_name
from dagster_mlops.errors import DatasetError

OUT = ["../x", "a/../../x", "a/..", "..", "/etc/passwd", "//etc", "", ".", "./", "a\0b", None, 3, ["a"], "\ud800"]
GIT = [".git", ".git/hooks/post-checkout", "a/.git/config", ".GIT/config", ".git./config", ".git /config", "git~1/x"]


@pytest.mark.parametrize("name", OUT + GIT, ids=ascii)
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    for check in (plain_name, lambda name, error: inside(tmp_path, name, error=error)):
        with pytest.raises(DatasetError, match="not read and not written"):
            check(name, error=DatasetError)


@pytest.mark.parametrize(
    "name", ["a", "a/b.c", "a/./b", "..a", "a..", ".github/x", ".gitignore", "ä b/ñ\n", "a\\b", "\udc80"]
)
def test_an_ordinary_name_is_a_path_below_the_folder(tmp_path, name):
    assert inside(tmp_path, name) == tmp_path / name
    assert tmp_path / plain_name(name) == tmp_path / name


def test_a_link_out_is_refused_and_one_that_stays_is_followed(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "deep").mkdir(parents=True)
    (folder / ".git").mkdir()
    out.mkdir()
    links = {
        "away": out,
        "up": Path("deep/../.."),
        "hooks": folder / ".git",
        "gone": out / "missing",
        "here": folder / "deep",
    }
    for name, to in links.items():
        (folder / name).symlink_to(to)
    assert inside(folder, "here/x") == folder / "here/x"
    for name in ("away/x", "away", "up/x", "hooks/config", "gone"):
        with pytest.raises(DatasetError, match="over a link"):
            inside(folder, name, error=DatasetError)
    (linked := tmp_path / "linked").symlink_to(folder)
    assert inside(linked, "deep/x") == linked / "deep/x", "the folder itself may be a link"
    assert inside(Path("/"), "etc/x") == Path("/etc/x")
