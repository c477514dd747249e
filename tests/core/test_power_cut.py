"""What is said to survive a power cut is on the disk, file and name, before the step goes on: seen in real processes.

A process writes down each fsync and each rename at the time it happens; another kills it.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dagster_mlops.serving import PredictionLog
from dagster_mlops.serving.runtime.log.synced_file import SyncedFile

WATCH = """
import os, sys
from pathlib import Path

_sync, _replace = os.fsync, os.replace

def note(*words):
    print(*words, flush=True)

def fsync(descriptor):
    _sync(descriptor)
    note("synced", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

def replace(source, target):
    _replace(source, target)
    note("renamed", Path(target).name)

os.fsync, os.replace = fsync, replace
folder = Path(sys.argv[1])
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def events(folder: Path, code: str) -> list[str]:
    """What a process that runs `code` wrote to the disk, in order."""
    command = [sys.executable, "-c", WATCH + textwrap.dedent(code), str(folder)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def test_a_durable_write_has_its_content_before_its_name_and_its_name_before_it_returns(tmp_path):
    code = """
        from dagster_mlops.core.files import write_atomically
        write_atomically(folder / "new" / "state", "1", durable=True)
        note("returned")
        write_atomically(folder / "new" / "state", "2")
    """
    content, *rest = events(tmp_path / "place", code)
    assert content.startswith("synced .state.")
    names = [f"synced {name}" for name in ("new", "place", tmp_path.name)]
    assert rest == ["renamed state", *names, "returned", "renamed state"]


def test_all_new_folders_around_a_durable_file_have_their_names_on_the_disk(tmp_path):
    code = """
        from dagster_mlops.core.files import sync_tree, write_atomically
        write_atomically(folder / "a" / "b" / "c" / "state", "1", durable=True, private=sys.argv[1].endswith("private"))
        note("returned")
        sync_tree(folder / "a" / "b")
    """
    for name in ("public", "private"):
        (tmp_path / name).mkdir()
        written, tree = " ".join(events(tmp_path / name, code)).split("returned")
        for folder in ("c", "b", "a", name):
            assert f"synced {folder} " in written and f"synced {folder}" in tree


def test_each_step_of_a_deployment_is_on_the_disk_before_the_next(tmp_path):
    code = """
        import dataclasses
        from dagster_mlops.provenance import Deployment
        from dagster_mlops.serving.local.state import DeploymentState
        record = Deployment(
            tool="bentoml", name="d", id="d-1", package="p:1", model_name="m", model_version="1", url="", started="",
            state_dir=str(folder), prediction_log="", traffic=0.0,
        )
        state = DeploymentState(
            record=record, phase="starting", ports=(1,), fingerprint="", golden_hash="", probe="", route=""
        )
        for phase in ("starting", "live"):
            state.save(phase=phase)
            note("saved")
    """
    steps = " ".join(events(tmp_path, code)).split("saved")[:-1]
    assert len(steps) == 2
    for step in steps:
        words = step.split()
        assert words.index("renamed") > 0 and words[words.index("renamed") + 1] == "d-1.json"
        assert "deployments" in words[words.index("renamed") :], "its name may be lost"


def test_a_strict_log_waits_for_the_disk_and_a_usual_one_does_not(tmp_path):
    code = """
        from dagster_mlops.serving import PredictionLog
        log = PredictionLog(folder, sync_seconds=float(sys.argv[1][-1]))
        for number in range(3):
            log.write(inputs=[{"n": number}], outputs=[0], request_ids=[str(number)])
            note("answered")
        note("left")
    """
    strict = [event.partition(" ")[0] for event in events(tmp_path / "0", code)]
    usual = [event.partition(" ")[0] for event in events(tmp_path / "9", code)]
    names = ["synced", "synced"]  # of the folder and the file
    assert strict == [*names, "synced", "answered", "synced", "answered", "synced", "answered", "left"]
    assert usual == [*names, "answered", "answered", "answered", "left", "synced"]


def test_a_usual_log_is_on_the_disk_after_its_seconds_without_another_write(tmp_path):
    code = """
        import time
        from dagster_mlops.serving import PredictionLog
        log = PredictionLog(folder, sync_seconds=0.05)
        for number in range(2):
            log.write(inputs=[{}], outputs=[0], request_ids=[str(number)])
            note("answered")
        while log._file._synced < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), 9)
    """
    process = subprocess.run(
        [sys.executable, "-c", WATCH + textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    names = [event.partition(" ")[0] for event in process.stdout.splitlines()]
    assert process.returncode == -signal.SIGKILL
    assert names[-1] == "synced" and names.count("answered") == 2 and names.count("synced") <= 3


def test_threads_that_wait_for_the_disk_share_an_fsync_and_lose_no_row(tmp_path):
    code = """
        import threading, time
        real = os.fsync
        os.fsync = lambda descriptor: (time.sleep(0.02), real(descriptor))  # a slow disk
        from dagster_mlops.serving import PredictionLog
        log = PredictionLog(folder, sync_seconds=0)
        def answer(thread):
            for number in range(20):
                log.write(inputs=[{}], outputs=[0], request_ids=[f"{thread}/{number}"])
        threads = [threading.Thread(target=answer, args=[n]) for n in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    """
    assert sum(event.startswith("synced") for event in events(tmp_path, code)) < 60
    assert len(PredictionLog.read(tmp_path)) == 80


@pytest.mark.parametrize("seconds", [0, 30])
def test_no_answered_prediction_is_lost_to_a_kill(tmp_path, seconds):
    code = f"""
        from dagster_mlops.serving import PredictionLog
        log = PredictionLog(folder, sync_seconds={seconds})
        for number in range(10**6):
            log.write(inputs=[{{}}], outputs=[number], request_ids=[str(number)])
            print("answered", number, flush=True)
    """
    command = [sys.executable, "-c", WATCH + textwrap.dedent(code), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(60)]
        process.kill()
        lines += process.stdout.read().rpartition("\n")[0].splitlines()  # the kill may cut the last one
    answered = {line.split()[1] for line in lines if line.startswith("answered ")}
    [file] = tmp_path.glob("*.jsonl")
    logged = {json.loads(line).get("request_id") for line in file.read_text().splitlines() if line.endswith("}")}
    assert answered <= logged and len(answered) > 10


def test_a_log_whose_disk_failed_later_refuses_the_next_prediction(tmp_path):
    code = """
        import time
        from dagster_mlops.serving import PredictionLog
        log = PredictionLog(folder, sync_seconds=0.01)
        log.write(inputs=[{}], outputs=[0], request_ids=["a"])
        def full(descriptor):
            raise OSError(28, "No space left on device")
        os.fsync = full
        try:
            while True:
                log.write(inputs=[{}], outputs=[0], request_ids=["b"])
                time.sleep(0.01)
        except OSError as error:
            note("refused", error.errno)
        os.fsync = fsync
        log.write(inputs=[{}], outputs=[0], request_ids=["after"])
    """
    assert "refused 28" in events(tmp_path, code)
    assert PredictionLog.find(tmp_path, "after"), "there is room again"


def test_a_line_that_a_full_disk_cut_off_does_not_take_the_next_one_with_it(tmp_path, monkeypatch):
    log, write = PredictionLog(tmp_path), os.write
    log.write(inputs=[{}], outputs=[0], request_ids=["before"])

    def fill(descriptor, data):
        monkeypatch.setattr(os, "write", full)
        return write(descriptor, data[:20])

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", fill)
    with pytest.raises(OSError, match="No space"):
        log.write(inputs=[{}], outputs=[0], request_ids=["refused"])
    monkeypatch.setattr(os, "write", write)
    log.write(inputs=[{}], outputs=[0], request_ids=["after"])
    assert list(PredictionLog.read(tmp_path)["request_id"]) == ["before", "after"]


def test_a_disk_that_fails_tells_all_who_wait_for_it(tmp_path, monkeypatch):
    """Linux tells one caller, and drops what it could not write: the next fsync of the file succeeds."""
    file, sync = SyncedFile(tmp_path / "log", 0), os.fsync
    file.settle(file.append(b"0"))
    waiting = [file.append(b"1"), file.append(b"2")]

    def fail(descriptor):
        monkeypatch.setattr(os, "fsync", sync)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    for number in waiting:
        with pytest.raises(OSError, match=r"\[Errno 5\]"):
            file.settle(number)
    file.settle(1)
    file.settle(file.append(b"3"))
    file.close()


@pytest.mark.thorough
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize(
    ("code", "files"),
    [
        (
            """
            from dagster_mlops.dvc import DvcResource
            dvc = DvcResource(repo=str(folder), push=False)
            dvc.init()
            (folder / "rows").write_text("1")
            dvc.store("rows")
            """,
            [r"\.dvc/tmp/dagster_mlops/scratch/\w+", r"\.git/objects/\w\w/tmp_obj_\w+", r"\.git/refs/heads/\w+\.lock"],
        ),
        (
            """
            from dagster_mlops.mlflow.sweep.study import open_storage
            open_storage(f"sqlite:///{folder}/studies.db")
            """,
            [r"studies\.db", r"studies\.db-journal"],
        ),
    ],
    ids=["pointer", "study"],
)
def test_what_other_programs_write_for_us_is_on_the_disk(tmp_path, code, files):
    script = "import sys; from pathlib import Path; folder = Path(sys.argv[1])\n" + textwrap.dedent(code)
    trace = tmp_path / "trace"
    watch = ["strace", "-f", "-y", "-o", str(trace), "-e", "trace=fsync,fdatasync"]
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run([*watch, sys.executable, "-c", script, str(place)], check=True, capture_output=True)
    synced = trace.read_text()
    assert [file for file in files if not re.search(rf"sync\(\d+<{place}/{file}>", synced)] == []
