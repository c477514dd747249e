"""The commit and the uncommitted diff of the code."""

import hashlib
import subprocess

import pytest

from dagster_mlops.code_state import CodeState, code_state


def _git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    folder.mkdir()
    _git(folder, "init", "-q", "-b", "main")
    (folder / "train.py").write_text("depth = 3\n")
    (folder / ".gitignore").write_text("ignored/\n")
    _git(folder, "add", "-A")
    _git(folder, "commit", "-qm", "first")
    return folder


def test_a_clean_checkout_has_a_commit_and_no_diff(checkout):
    state = code_state(checkout / "train.py")
    assert state == CodeState(commit=_git(checkout, "rev-parse", "HEAD"), branch="main", toplevel=str(checkout))


def test_the_diff_rebuilds_the_uncommitted_code_and_leaves_the_index_alone(checkout, tmp_path):
    (checkout / "train.py").write_text("depth = 4\n")
    (checkout / "new file.py").write_text("leaves = 31\n")
    (checkout / "blob.bin").write_bytes(bytes(range(256)))
    (checkout / "data.csv").write_bytes(b"1\n" * 600_000)
    before = _git(checkout, "status", "--porcelain")
    state = code_state(checkout)
    assert state.dirty_hash == hashlib.sha256(state.diff.encode()).hexdigest()
    assert _git(checkout, "status", "--porcelain") == before

    clone = tmp_path / "clone"
    _git(tmp_path, "clone", "-q", str(checkout), str(clone))
    subprocess.run(["git", "apply"], cwd=clone, check=True, input=state.diff.encode())
    assert (clone / "train.py").read_text() == "depth = 4\n"
    assert (clone / "new file.py").read_text() == "leaves = 31\n"
    assert (clone / "blob.bin").read_bytes() == bytes(range(256))
    assert not (clone / "data.csv").exists()


def test_the_hash_changes_with_the_code_only(checkout):
    (checkout / "train.py").write_text("depth = 4\n")
    first = code_state(checkout).dirty_hash
    _git(checkout, "config", "color.ui", "always")
    _git(checkout, "config", "diff.mnemonicPrefix", "true")
    assert code_state(checkout).dirty_hash == first
    _git(checkout, "add", "train.py")
    assert code_state(checkout).dirty_hash == first
    (checkout / "train.py").write_text("depth = 5\n")
    assert code_state(checkout).dirty_hash != first


def test_a_detached_head_has_no_branch(checkout):
    _git(checkout, "checkout", "-q", "--detach")
    state = code_state(checkout)
    assert state.commit and not state.branch


def test_without_git_or_a_commit_the_state_is_unknown(tmp_path, checkout, monkeypatch):
    ignored = checkout / "ignored" / "package.py"
    ignored.parent.mkdir()
    ignored.write_text("")
    unborn = tmp_path / "unborn"
    unborn.mkdir()
    _git(unborn, "init", "-q")
    for place in (tmp_path, unborn, ignored, tmp_path / "missing" / "x.py"):
        assert code_state(place) == CodeState()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_state(checkout) == CodeState()
