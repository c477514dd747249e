"""Files that several processes share, with real processes and real kills."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dagster_mlops.core.files import digest, exclusive, if_free, write_atomically
from dagster_mlops.errors import DagsterMlopsError, FeatureError

HOLD = (
    "import sys, time, pathlib; from dagster_mlops.core.files import exclusive\n"
    "with exclusive(pathlib.Path(sys.argv[1]), 1): print('held', flush=True); time.sleep(60)"
)
COUNT = """
import pathlib, sys
from dagster_mlops.core.files import exclusive
lock, counter = map(pathlib.Path, sys.argv[1:])
for _ in range(50):
    with exclusive(lock, 60):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_a_killed_process_frees_its_lock_and_a_living_one_is_named(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "l")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with (
        pytest.raises(FeatureError, match=f"was held by process {holder.pid} for 0.2 s"),
        exclusive(tmp_path / "l", 0.2, error=FeatureError),
    ):
        pass
    with if_free(tmp_path / "l") as free:
        assert not free
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    start = time.monotonic()
    with exclusive(tmp_path / "l", 5):
        assert time.monotonic() - start < 1
    with if_free(tmp_path / "l") as free:
        assert free


def test_only_one_process_at_a_time_is_inside(tmp_path):
    counter = tmp_path / "count"
    counter.write_text("0")
    workers = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path / "l"), str(counter)]) for _ in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0] and counter.read_text() == "150"


def test_a_lock_keeps_threads_of_one_process_apart(tmp_path):
    entered: list[str] = []

    def enter() -> None:
        with exclusive(tmp_path / "l", 5):
            entered.append("second")

    with exclusive(tmp_path / "l", 5):
        thread = threading.Thread(target=enter)
        thread.start()
        time.sleep(0.2)
        entered.append("first")
    thread.join()
    assert entered == ["first", "second"]
    with pytest.raises(DagsterMlopsError), exclusive(tmp_path / "l", 1), exclusive(tmp_path / "l", 0.1):
        pass


def test_readers_see_all_of_the_old_or_all_of_the_new(tmp_path):
    file = tmp_path / "folder" / "state"
    write_atomically(file, "0" * 100_000)
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import itertools, pathlib, sys; from dagster_mlops.core.files import write_atomically\n"
            "for n in itertools.count(): write_atomically(pathlib.Path(sys.argv[1]), str(n % 10) * 100_000)",
            str(file),
        ]
    )
    seen = set()
    deadline = time.monotonic() + 30
    while len(seen) < 5 and time.monotonic() < deadline:
        content = file.read_text()
        assert len(content) == 100_000 and len(set(content)) == 1
        seen.add(content[0])
    writer.kill()
    writer.wait()
    assert len(seen) >= 5


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    file = tmp_path / "state"
    write_atomically(file, b"old", durable=True)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, "new", durable=True)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_the_permissions_are_those_that_a_plain_write_gives_unless_told(tmp_path):
    write_atomically(tmp_path / "a", "")
    write_atomically(tmp_path / "b", "", private=True)
    Path(tmp_path / "c").write_text("")
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in "abc"]
    assert modes == [modes[2], 0o600, modes[2]]


def test_a_digest_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 5_000_000)
    assert digest(tmp_path / "a") == hashlib.sha256(b"x" * 5_000_000).hexdigest()
    assert digest(tmp_path / "a", "md5") == hashlib.md5(b"x" * 5_000_000, usedforsecurity=False).hexdigest()
