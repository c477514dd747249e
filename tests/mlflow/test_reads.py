"""A training names the files, addresses and variables that it reads and that nobody versions, and no others."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dagster_mlops.core.code_state import CodeState, code_state
from dagster_mlops.mlflow.training.reads import not_an_input, unversioned, watched_reads
from dagster_mlops.provenance import Dataset


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    pd.DataFrame({"a": [1]}).to_csv(folder / "rows.csv")
    pd.DataFrame({"a": [1]}).to_parquet(folder / "rows.parquet")
    np.save(folder / "rows.npy", np.ones(3))
    sqlite3.connect(folder / "rows.db").close()
    (folder / "rows.db").touch()
    time.sleep(0.02)  # the clock of a file system is coarse
    return folder


def read(action: Any, *, code: CodeState | None = None, inputs: Any = (), tool_paths: Any = ()) -> dict[str, Any]:
    with watched_reads() as reads:
        action()
    return unversioned(reads, code or CodeState(), inputs, tool_paths)


def in_thread(action: Any) -> None:
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("rows.csv", pd.read_csv),
        ("rows.csv", lambda file: os.close(os.open(file, os.O_RDONLY))),
        ("rows.csv", lambda file: in_thread(file.read_bytes)),
        ("rows.parquet", pd.read_parquet),
        ("rows.npy", lambda file: np.load(file, mmap_mode="r")),
        ("rows.db", lambda file: sqlite3.connect(file).close()),
        ("rows.csv", lambda file: (file.read_text(), file.write_text("b"))),
    ],
)
def test_a_file_that_was_there_before_is_named(elsewhere, name, action):
    file = elsewhere / name
    found = read(lambda: action(file))
    assert list(found["files"]) == [str(file)]
    assert found["files"][str(file)]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_the_training_writes_or_others_version_is_not_named(elsewhere, tmp_path):
    def work() -> None:
        (tmp_path / "own.csv").write_text("a")
        (tmp_path / "own.csv").read_text()
        shutil.copytree(elsewhere, tmp_path / "copy")
        open(elsewhere / "rows.csv", "a").close()
        Path(pd.__file__).read_bytes()
        (elsewhere / "rows.parquet").read_bytes()
        (elsewhere / "rows.npy").read_bytes()
        not_an_input(elsewhere / "rows.db")
        sqlite3.connect(elsewhere / "rows.db").close()
        (tmp_path / "copy" / "rows.csv").read_bytes()

    inputs = [Dataset(path="rows.parquet", md5="0" * 32, repo=str(elsewhere))]
    found = read(work, inputs=inputs, tool_paths=[str(elsewhere / "rows.npy")])
    # Copying the folder has read it.
    assert list(found["files"]) == [str(elsewhere / "rows.csv")]


def test_in_a_checkout_only_ignored_files_have_no_version(tmp_path):
    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    for name, text in {".gitignore": "data/\n", "code.txt": "1", "data/rows.csv": "a", "new.txt": "2"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    git("add", ".gitignore", "code.txt")
    git("commit", "-q", "-m", "Start")
    time.sleep(0.02)

    def work() -> None:
        for name in ("code.txt", "data/rows.csv", "new.txt", ".gitignore"):
            (tmp_path / name).read_text()

    assert list(read(work, code=code_state(tmp_path))["files"]) == ["data/rows.csv"]


def test_addresses_are_named_without_their_password():
    def work() -> None:
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen("http://ml:hunter2@127.0.0.1:1/rows.csv", timeout=1)

    assert read(work)["addresses"] == ["http://***@127.0.0.1:1/rows.csv"]


def test_variables_are_named_with_a_hash_when_they_are_read_one_by_one(monkeypatch):
    for name in ("SHOP_RATE", "SHOP_MODE", "SHOP_LEFT", "SHOP_PASSWORD"):
        monkeypatch.setenv(name, "1")

    def work() -> None:
        assert (os.environ["SHOP_RATE"], os.getenv("SHOP_MODE"), os.getenv("SHOP_ABSENT")) == ("1", "1", None)
        assert os.environ["SHOP_PASSWORD"] and os.environ["PATH"]
        assert {**os.environ} == dict(os.environ) == os.environ.copy() == dict(os.environ.items())
        os.environ["SHOP_LEFT"] = "2"

    assert read(work)["variables"] == dict.fromkeys(["SHOP_MODE", "SHOP_RATE"], hashlib.sha256(b"1").hexdigest()[:16])
