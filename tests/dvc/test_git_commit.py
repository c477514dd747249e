"""Commits beside the user's index: git's own filters, modes, links, deletions and ignore rules hold."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dagster_mlops.dvc.store.git_commit import blobs, commit
from dagster_mlops.errors import DatasetError


def git(top: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=top, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def top(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "first").write_text("1\n")
    git(tmp_path, "add", "first")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def committed(top, files=(), edits=None):
    return commit(top, files, edits or {}, message="more", author={}, wait=1)


def test_a_filter_of_the_repository_cleans_what_is_committed(top):
    git(top, "config", "filter.loud.clean", "tr a-z A-Z")
    (top / ".gitattributes").write_text("*.dvc filter=loud\ndvc.lock text eol=crlf\n")
    (top / "data.dvc").write_text("outs\n")
    assert committed(top, ["data.dvc"], {"dvc.lock": lambda old: b"a: 1\r\n"})
    assert blobs(top, ["HEAD:data.dvc", "HEAD:dvc.lock"]) == [b"OUTS\n", b"a: 1\n"]
    assert git(top, "status", "--porcelain", "data.dvc") == ""


def test_modes_links_and_deletions_are_committed_as_they_are(top):
    (top / "plots").mkdir()
    for name in ("old.json", "run.sh"):
        (top / "plots" / name).write_text(name)
    (top / "plots" / "run.sh").chmod(0o755)
    (top / "plots" / "latest").symlink_to("old.json")
    names = ["plots/old.json", "plots/run.sh", "plots/latest"]
    assert committed(top, names)
    listed = git(top, "ls-tree", "-r", "HEAD", "plots").splitlines()
    assert [row.split()[0] for row in listed] == ["120000", "100644", "100755"]
    (top / "plots" / "old.json").unlink()
    assert committed(top, names)
    assert git(top, "ls-tree", "-r", "--name-only", "HEAD", "plots").split() == ["plots/latest", "plots/run.sh"]
    assert git(top, "status", "--porcelain") == ""


def test_an_edit_keeps_the_mode_of_its_file(top):
    (top / "dvc.lock").write_text("a\n")
    (top / "dvc.lock").chmod(0o755)
    git(top, "add", "dvc.lock")
    git(top, "commit", "-qm", "executable")
    committed(top, (), {"dvc.lock": lambda old: old + b"b\n"})
    assert git(top, "ls-tree", "HEAD", "dvc.lock").startswith("100755")
    assert blobs(top, ["HEAD:dvc.lock"]) == [b"a\nb\n"]


def test_what_git_ignores_is_left_out_unless_it_is_tracked(top):
    (top / ".gitignore").write_text("*.json\n")
    for name in ("tracked.json", "other.json", "kept.txt"):
        (top / name).write_text("1")
    git(top, "add", "-f", "tracked.json")
    git(top, "commit", "-qm", "tracked")
    (top / "tracked.json").write_text("2")
    assert committed(top, ["tracked.json", "other.json", "kept.txt", "never-there.txt"])
    assert git(top, "ls-tree", "--name-only", "HEAD").split() == ["first", "kept.txt", "tracked.json"]
    assert blobs(top, ["HEAD:tracked.json"]) == [b"2"]


def test_a_path_is_a_path_and_not_a_pattern(top):
    for name in ("[ab].dvc", "a.dvc", ":(top)x.dvc"):
        (top / name).write_text(name)
    assert committed(top, ["[ab].dvc", ":(top)x.dvc"])
    assert set(git(top, "ls-tree", "--name-only", "HEAD").split()) == {"first", "[ab].dvc", ":(top)x.dvc"}


def test_what_the_user_has_staged_edited_and_left_untracked_stays_so(top):
    (top / "staged").write_text("1")
    git(top, "add", "staged")
    (top / "first").write_text("edited\n")
    (top / "untracked").write_text("1")
    (top / "data.dvc").write_text("outs")
    assert committed(top, ["data.dvc"])
    assert git(top, "show", "--name-only", "--format=", "HEAD").split() == ["data.dvc"]
    assert git(top, "status", "--porcelain").splitlines() == [" M first", "A  staged", "?? untracked"]


def test_a_commit_outside_of_a_sparse_checkout_is_made(top):
    git(top, "sparse-checkout", "set", "src")
    (top / "data").mkdir()
    (top / "data" / "rows.dvc").write_text("outs")
    assert committed(top, ["data/rows.dvc"])
    assert git(top, "ls-tree", "-r", "--name-only", "HEAD").split() == ["data/rows.dvc", "first"]


def test_nothing_new_is_no_commit_and_needs_no_lock(top):
    (top / "data.dvc").write_text("outs")
    assert committed(top, ["data.dvc"])
    (top / ".git" / "index.lock").touch()  # left by a git that was killed
    assert committed(top, ["data.dvc"], {"first": lambda old: old}) is None
    (top / "data.dvc").write_text("others")
    with pytest.raises(DatasetError, match=r"index\.lock.*delete that file"):
        committed(top, ["data.dvc"])


def test_the_first_commit_of_a_repository(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "data.dvc").write_text("outs")
    assert committed(tmp_path, ["data.dvc"], {".gitignore": lambda old: b"/data\n"})
    assert git(tmp_path, "ls-tree", "--name-only", "HEAD").split() == [".gitignore", "data.dvc"]
    assert os.listdir(tmp_path / ".git").count("index.lock") == 0


def test_a_filter_that_fails_is_told(top):
    git(top, "config", "filter.broken.clean", "false")
    git(top, "config", "filter.broken.required", "true")
    (top / ".gitattributes").write_text("*.dvc filter=broken\n")
    (top / "data.dvc").write_text("outs")
    with pytest.raises(DatasetError, match="broken"):
        committed(top, ["data.dvc"])


def test_a_git_that_cannot_tell_what_it_ignores_commits_nothing(top, tmp_path_factory, monkeypatch):
    """As when it is late or killed on a loaded machine: data that git ignores would be staged."""
    real, bin_folder = shutil.which("git"), tmp_path_factory.mktemp("bin")
    (bin_folder / "git").write_text(f'#!/bin/sh\n[ "$1" = check-ignore ] && exit 128\nexec {real} "$@"\n')
    (bin_folder / "git").chmod(0o755)
    (top / ".gitignore").write_text("/raw.csv\n")
    (top / "raw.csv").write_text("1\n")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(bin_folder), prepend=os.pathsep)
        with pytest.raises(DatasetError, match="cannot tell what it ignores"):
            committed(top, ["raw.csv"])
    assert git(top, "ls-files") == "first\n"
