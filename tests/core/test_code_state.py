"""The commit and the uncommitted diff of the code."""

import hashlib
import os
import subprocess

import pytest

from dagster_mlops.core.code_state import KEY, NOT_CODE, CodeState, code_state
from dagster_mlops.core.keys import MARK


def _git(folder, *arguments):
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def _at_once(file, text=None):
    """All that is written like this is of one moment."""
    if text is not None:
        file.write_text(text)
    os.utime(file, (1e9, 1e9))


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


def test_pythons_bytecode_is_no_change_of_the_code(checkout):
    folder = checkout / "features"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    _git(checkout, "add", "-A")
    _git(checkout, "commit", "-qm", "a package")
    for beside in (checkout, folder):
        (beside / "__pycache__").mkdir()
        (beside / "__pycache__" / "train.cpython-311.pyc").write_bytes(b"bytecode")
    state = code_state(checkout / "train.py")
    assert (state.dirty_hash, state.left_out) == ("", {})


def test_the_diff_rebuilds_the_uncommitted_code_and_leaves_the_index_alone(checkout, tmp_path):
    (checkout / "train.py").write_text("depth = 4\n")
    (checkout / "new file.py").write_text("leaves = 31\n")
    (checkout / "blob.bin").write_bytes(bytes(range(256)))
    (checkout / "data.csv").write_bytes(b"1\n" * 600_000)
    before = _git(checkout, "status", "--porcelain")
    state = code_state(checkout, untracked="all")
    assert state.dirty_hash == hashlib.sha256(state.diff).hexdigest()
    assert _git(checkout, "status", "--porcelain") == before

    clone = tmp_path / "clone"
    _git(tmp_path, "clone", "-q", str(checkout), str(clone))
    subprocess.run(["git", "apply"], cwd=clone, check=True, input=state.diff)
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


SETTINGS = {
    "diff.context": "10",
    "diff.interHunkContext": "10",
    "diff.renames": "copies",
    "diff.noprefix": "true",
    "diff.algorithm": "patience",
    "diff.indentHeuristic": "false",
    "diff.suppressBlankEmpty": "true",
    "diff.orderFile": "order",
    "diff.external": "false",
    "core.abbrev": "30",
    "core.quotePath": "false",
}


def test_what_a_user_configured_changes_neither_hash_nor_diff(checkout):
    lines = [f"line_{i} = {i}\n\n" for i in range(40)]
    for name in ("a.py", "b.py", "é.py"):
        (checkout / name).write_text("".join(lines))
    (checkout / "order").write_text("*.txt\nb.py\n")
    _git(checkout, "add", "-A")
    _git(checkout, "commit", "-qm", "second")
    (checkout / "a.py").rename(checkout / "c.py")
    for name in ("b.py", "é.py"):
        (checkout / name).write_text("".join(lines[:10] + lines[11:20] + lines[19:]))
    before = code_state(checkout)
    for name, value in SETTINGS.items():
        _git(checkout, "config", name, value)
        assert code_state(checkout).diff == before.diff, name


def test_a_change_within_the_second_that_keeps_the_size_is_seen(checkout):
    _at_once(checkout / "train.py", "depth = 4\n")
    _git(checkout, "commit", "-qam", "second")
    _at_once(checkout / ".git" / "index")
    _at_once(checkout / "train.py", "depth = 5\n")
    (checkout / "new.py").touch()  # for which the index is copied
    assert b"+depth = 5" in code_state(checkout).diff


def test_a_change_that_is_not_utf_8_is_kept_to_the_byte(checkout):
    (checkout / "train.py").write_bytes(b"# coding: latin-1\nname = 'caf\xe9'  \r\n")
    state = code_state(checkout)
    assert b"caf\xe9" in state.diff and state.dirty_hash == hashlib.sha256(state.diff).hexdigest()


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


# What looks like a key

PRIVATE = "-----BEGIN " + "PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n"
TOKEN = "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345"


def _clone(checkout, folder, state):
    _git(folder.parent, "clone", "-q", str(checkout), str(folder))
    if state.diff:
        subprocess.run(["git", "apply"], cwd=folder, check=True, input=state.diff)
    return code_state(folder)


@pytest.mark.parametrize(
    "name",
    [
        *(".env", "id_rsa", ".aws/credentials", "service_account.json", "kubeconfig", ".netrc", ".pypirc", "a.tfvars"),
        *("conf/ID_ED25519.bak", "notes.txt", "helper.py"),
    ],
)
def test_an_untracked_file_of_keys_is_named_and_not_kept(checkout, name):
    (checkout / name).parent.mkdir(exist_ok=True)
    (checkout / name).write_text(f"token={TOKEN}\n{PRIVATE}")
    (checkout / "new.py").write_text("leaves = 31\n")
    state = code_state(checkout)
    assert TOKEN.encode() not in state.diff and b"MIIE" not in state.diff and b"leaves = 31" in state.diff
    assert state.left_out == {name: KEY}
    assert code_state(checkout, untracked="all").left_out == {name: KEY}, "also where every small file is kept"


def test_untracked_files_are_kept_if_they_are_code(checkout):
    for name in ("rows.csv", "plot.png", "model.pkl", "export.parquet", "mail.eml", "notes"):
        (checkout / name).write_text("1\n")
    for name in ("new.py", "params.yaml", "data.dvc", "Makefile", "query.SQL", "Dockerfile"):
        (checkout / name).write_text("1\n")
    state = code_state(checkout)
    assert set(state.left_out) == {"rows.csv", "plot.png", "model.pkl", "export.parquet", "mail.eml", "notes"}
    assert set(state.left_out.values()) == {NOT_CODE} and state.diff.count(b"new file mode") == 6
    assert code_state(checkout, untracked="all").left_out == {}


def test_a_key_in_a_changed_line_is_marked_and_the_rerun_has_the_same_diff(checkout, tmp_path):
    (checkout / "train.py").write_text(f'depth = 4\ntoken = "{TOKEN}"\n')
    (checkout / "new file.yaml").write_text("password: hunter22\ndepth: 5\n")
    state = code_state(checkout)
    assert TOKEN.encode() not in state.diff and b"hunter22" not in state.diff and b"depth: 5" in state.diff
    assert set(state.without_keys) == {"train.py", "new file.yaml"} and state.left_out == {}
    stored = _git(checkout, "hash-object", "train.py")
    assert stored.encode() not in state.diff, "a hash of the file would let one guess a short key"
    again = _clone(checkout, tmp_path / "clone", state)
    assert again.dirty_hash == state.dirty_hash and again.without_keys == state.without_keys
    assert (tmp_path / "clone" / "new file.yaml").read_text() == f"password: {MARK.decode()}\ndepth: 5\n"


def test_a_key_that_a_change_removes_or_stands_beside_is_not_kept_either(checkout):
    (checkout / "train.py").write_text(f'token = "{TOKEN}"\nx = 1\n')
    (checkout / "b.py").write_text('x = 1\npassword = "hunter22"\n')
    (checkout / ".env").write_text("A=1\n")
    _git(checkout, "add", "-A", "-f")
    _git(checkout, "commit", "-qm", "keys")
    (checkout / "train.py").write_text("x = 1\n")
    (checkout / "b.py").write_text('x = 2\npassword = "hunter22"\n')
    (checkout / ".env").write_text("A=2\n")
    state = code_state(checkout)
    assert TOKEN.encode() not in state.diff and b"hunter22" not in state.diff and b".env" not in state.diff
    assert set(state.without_keys) == {"train.py", "b.py", ".env"} and state.left_out == {".env": KEY}


def test_a_tracked_file_with_a_private_key_is_left_out_as_a_whole(checkout, tmp_path):
    (checkout / "train.py").write_text(f'KEY = """{PRIVATE}"""\n')
    (checkout / "b \u00e9.py").write_text(f"{PRIVATE}")
    state = code_state(checkout)
    assert state.diff == b"" and set(state.left_out) == {"train.py", "b \u00e9.py"} == set(state.without_keys)
    assert state.dirty_hash == ""


def test_text_that_no_key_would_be_found_in_is_not_code(checkout):
    (checkout / "settings.txt").write_text("password = hunter22\n", encoding="utf-16")
    (checkout / "train.py").write_text("depth = 4\n")
    state = code_state(checkout)
    assert state.left_out == {"settings.txt": NOT_CODE} and b"settings.txt" not in state.diff and state.diff
