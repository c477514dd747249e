"""The files that define outputs are found as git lists them, without asking git about each ignored file."""

import os
import subprocess
from pathlib import Path

from dagster_mlops.dvc.store.overlap import _definitions

PATTERNS = ("*.dvc", "dvc.yaml", "*/dvc.yaml", "*/.dvc/config")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)
    return os.fsdecode(done.stdout)


def _write(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("")


def test_definitions_are_those_of_git_tracked_or_not_but_not_ignored(tmp_path):
    _git(tmp_path, "init", "-q")
    _write(tmp_path, "dvc.yaml", "a.dvc", "data/b.dvc", "data/deep/c.dvc", ".dvc/config", "src/x.py", "kept/dvc.yaml")
    _write(tmp_path, "tracked but ignored/e.dvc", "été/f.dvc")
    _git(tmp_path, "add", "--all")
    (tmp_path / ".gitignore").write_text(".venv/\n/tracked but ignored\n*.tmp.dvc\n")
    (tmp_path / "data" / ".gitignore").write_text("/b\n/out\n")
    _write(
        tmp_path, "new.dvc", "data/new.dvc", "data/out/ignored.dvc", ".venv/lib/dvc.yaml", "fresh/one/dvc.yaml",
        "fresh/two/g.dvc", "x.tmp.dvc", "fresh/h.tmp.dvc", ".dvc/tmp/i.dvc", "not a dvc.yaml/notdvc.yaml",
        "tracked but ignored/new.dvc",
    )  # fmt: skip
    os.symlink(tmp_path / "data", tmp_path / "link")
    os.symlink(tmp_path / "a.dvc", tmp_path / "link.dvc")
    _git(tmp_path, "init", "-q", "inner")
    _write(tmp_path, "inner/j.dvc")
    listed = _git(tmp_path, "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *PATTERNS)
    assert {"new.dvc", "fresh/one/dvc.yaml", "tracked but ignored/e.dvc"} < set(_definitions(tmp_path))
    assert {*_definitions(tmp_path)} == {name for name in listed.split("\0") if name and name != ".dvc/config"}
    below = _git(tmp_path / "data", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *PATTERNS)
    assert {*_definitions(tmp_path / "data")} == {name for name in below.split("\0") if name}


def test_a_repository_below_keeps_its_definitions_to_itself(tmp_path):
    _git(tmp_path, "init", "-q")
    _write(tmp_path, "a.dvc", "sub/.dvc/config", "sub/b.dvc")
    assert _definitions(tmp_path) == ["a.dvc"]
    assert _definitions(tmp_path / "sub") == ["b.dvc"]
    _git(tmp_path, "add", "--all")
    assert _definitions(tmp_path) == ["a.dvc"]
