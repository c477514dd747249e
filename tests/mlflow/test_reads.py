"""A training names the files, addresses and variables that it reads and that nobody versions, and no others."""

import hashlib
import json
import os
import py_compile
import runpy
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dagster_mlops
from dagster_mlops.core.code_state import CodeState, code_state
from dagster_mlops.mlflow.training import reads
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
    (folder / "code.py").write_text("VALUE = 1\n")
    time.sleep(0.02)  # the clock of a file system is coarse
    return folder


def read(action: Any, *, code: CodeState | None = None, inputs: Any = (), tool_paths: Any = ()) -> dict[str, Any]:
    with watched_reads() as found:
        action()
    return unversioned(found, code or CodeState(), inputs, tool_paths)


def linked(file: Path) -> None:
    os.link(file, file.with_name("link"))
    file.with_name("link").read_text()


def moved(file: Path) -> None:
    file.rename(file.with_name("moved")).read_text()


def touched(file: Path) -> None:
    file.chmod(0o600)
    file.read_text()


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
        ("rows.csv", linked),
        ("rows.csv", touched),
        ("code.py", lambda file: exec(file.read_text())),
        ("code.py", lambda file: py_compile.compile(str(file), file.with_suffix(".pyc"))),
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

    md5 = hashlib.md5((elsewhere / "rows.parquet").read_bytes(), usedforsecurity=False).hexdigest()
    for recorded, named in ((md5, []), ("0" * 32, [str(elsewhere / "rows.parquet")])):  # changed since it was recorded
        inputs = [Dataset(path="rows.parquet", md5=recorded, repo=str(elsewhere))]
        found = read(work, inputs=inputs, tool_paths=[str(elsewhere / "rows.npy")])
        # Copying the folder has read it.
        assert list(found["files"]) == [str(elsewhere / "code.py"), str(elsewhere / "rows.csv"), *named]
        shutil.rmtree(tmp_path / "copy")


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


def test_a_file_that_is_gone_at_the_end_is_named_without_a_hash(elsewhere):
    found = read(lambda: moved(elsewhere / "rows.csv"))
    assert found["files"] == {str(elsewhere / "rows.csv"): {"bytes": 0, "sha256": ""}}


def test_an_ignored_file_in_a_submodule_has_no_version(tmp_path):
    for folder in (tmp_path, tmp_path / "lib"):
        folder.mkdir(exist_ok=True)
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        (folder / ".gitignore").write_text("data/\n")
        (folder / "data").mkdir()
        for name in ("data/rows.csv", "code.txt"):
            (folder / name).write_text("a")
        subprocess.run(["git", "add", "."], cwd=folder, check=True, capture_output=True)
        subprocess.run(["git", "commit", "-q", "-m", "Start"], cwd=folder, check=True)
    # In this order, the repository below is a submodule of the one above: git answers for no path of it.
    subprocess.run(["git", "add", "lib"], cwd=tmp_path, check=True, capture_output=True)
    time.sleep(0.02)

    def work() -> None:
        for name in ("code.txt", "data/rows.csv", "lib/code.txt", "lib/data/rows.csv"):
            (tmp_path / name).read_text()

    code = CodeState(toplevel=str(tmp_path), submodules={"lib": "1a2b"})
    assert list(read(work, code=code)["files"]) == ["data/rows.csv", "lib/data/rows.csv"]


@pytest.mark.parametrize(
    ("file", "is_known"),
    [
        ("/usr/share/zoneinfo/UTC", True),
        ("/lib/x86_64-linux-gnu/libc.so.6", True),
        ("/opt/cuda/libcudart.so.12", True),
        ("/usr/local/nvidia/lib64/libcuda.so.1", True),
        ("/etc/ld.so.cache", True),
        ("/etc/vulkan/icd.d/nvidia_icd.json", True),
        ("/srv/libscore.so", False),
        ("/srv/weights.pth", False),
        ("/usr/src/app/data/rows.csv", False),
        ("/usr/local/share/nltk_data/stopwords", False),
        ("/etc/shop/params.yaml", False),
        ("/etc/config/..2026_01_01/limits", False),
        ("/srv/worktree/.git", True),
        ("/srv/worktree/.gitattributes", True),
        ("/dev/urandom", True),
        ("/dev/shm/rows.npy", False),
        ("/library/rows.csv", False),
        ("/run/media/disk/rows.csv", False),
        ("/usr/data/rows.csv", False),
        ("~/.netrc", True),
        ("~/.config/matplotlib/matplotlibrc", True),
        ("~/.config/shop/params.ini", False),
        ("~/.keras/keras.json", True),
        ("~/.keras/datasets/mnist.npz", False),
        ("~/.cache/huggingface/hub/model.bin", False),
    ],
)
def test_files_of_the_machine_are_told_from_data(file, is_known):
    assert reads._known(os.path.expanduser(file), []) == is_known


def test_a_copy_of_this_file_knows_the_package_that_is_installed(tmp_path):
    """A rerun runs the file of the command, in an environment that may have the package from elsewhere."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    copy = shutil.copy(str(reads.__file__), tmp_path / "a" / "b")
    package = str(Path(str(dagster_mlops.__file__)).parent)
    assert {package, str(tmp_path)} <= set(runpy.run_path(copy)["_installed"]())


def test_a_folder_of_packages_is_one_that_python_installs_into(monkeypatch):
    places = ["/opt/venv/lib/python3.11/site-packages", "/srv/shared-packages", "/usr/lib/python3/dist-packages"]
    monkeypatch.setattr(sys, "path", places)
    assert {places[0], places[2]} <= set(reads._installed()) and places[1] not in reads._installed()


def test_a_library_that_was_built_in_the_checkout_is_of_its_code(tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("*.so\n*.csv\n")
    files = {str(tmp_path / name): str(tmp_path / name) for name in ("fast.so", "rows.csv")}
    assert list(reads._uncommitted(files, CodeState(toplevel=str(tmp_path))).values()) == ["rows.csv"]


WATCHED = """
import json, os, sys, time
from dagster_mlops.mlflow.training import _syscalls_script as watch

def work():
    with open(sys.argv[1]): pass
    for mark in (watch.ON, None, watch.OFF):
        if mark:
            try: open(mark)
            except OSError: pass
        else:
            import polars, socket, subprocess
            polars.read_csv(sys.argv[2])
            subprocess.run(["tail", os.path.relpath(sys.argv[3])], check=True, capture_output=True)
            os.link(sys.argv[4], sys.argv[4] + ".link")
            open(sys.argv[4] + ".new", "w").write("1")
            open(sys.argv[4] + ".new").read()
            socket.socket().connect_ex(("127.0.0.1", 1))
            subprocess.run([sys.argv[5], "1"], check=True, capture_output=True)
            socket.socket(socket.AF_UNIX).connect_ex(sys.argv[6])
            with socket.create_server(("127.0.0.1", 0)) as server:
                socket.create_connection(server.getsockname()).close()
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(sys.argv[6] + ".new")
                server.listen()
                socket.socket(socket.AF_UNIX).connect(sys.argv[6] + ".new")
    with open(sys.argv[1]): pass
    return 7

answer, seen = watch.run_watched(work)
assert answer == 7
print(json.dumps(seen))
try:
    watch.run_watched(lambda: 1 / 0)
except RuntimeError as error:
    assert "ZeroDivisionError" in str(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux tells what is opened")
def test_what_c_and_other_processes_open_and_run_is_seen_and_not_what_they_serve_themselves(tmp_path):
    files = [tmp_path / f"{number}.csv" for number in range(4)]
    for file in files:
        file.write_text("a\n1\n")
    files.append(Path(shutil.copy("/bin/echo", tmp_path / "program")))
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as database:  # its path must be short
        database.bind(f"{folder}/db")
        database.listen()
        time.sleep(0.02)
        command = [sys.executable, "-W", "ignore", "-c", WATCHED, *map(str, files), f"{folder}/db"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    seen = json.loads(done.stdout)
    assert [name for name in seen["files"] if name.startswith(str(tmp_path))] == [str(file) for file in files[1:]]
    assert seen["addresses"] == ["127.0.0.1:1", f"{folder}/db"]


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
