"""Child processes that answer requests and end with us, with real processes and real kills."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from dagster_mlops.core.child import ChildError, child_session, run_child, run_program

SCRIPT = """
    import os, subprocess, sys, time

    asked = 0

    def answer(request):
        global asked
        asked += 1
        return globals()[request["do"]](request)

    def echo(request):
        print("printed")
        subprocess.run(["sh", "-c", "echo from the command; echo to stderr >&2"], check=True)
        return {"request": request, "asked": asked, "stdin": sys.stdin.read(), "path": sys.path, "pid": os.getpid()}

    def fail(request):
        print("before")
        raise ValueError("no such thing")

    def leave(request):
        sys.exit("left")

    def killed(request):
        print("last words", flush=True)
        os.kill(os.getpid(), 9)

    def large(request):
        sys.stdout.write("o" * 3_000_000 + "\\n")
        return "a" * 3_000_000

    def hang(request):
        helper = subprocess.Popen(["sleep", "600"])
        with open(request["pids"], "w") as file:
            file.write(f"{os.getpid()} {helper.pid}")
        os.rename(request["pids"], request["pids"] + ".whole")
        time.sleep(600)

    def leftover(request):
        return subprocess.Popen(["sleep", "600"]).pid

    def slowly(request):
        for n in range(request["lines"]):
            print(n)
            time.sleep(0.2)
"""


@pytest.fixture
def script(tmp_path):
    """A script in a folder with a neighbour that would break it, if it could be imported."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "json.py").write_text("raise RuntimeError('the neighbour was imported')")
    file = folder / "_answers_script.py"
    file.write_text(textwrap.dedent(SCRIPT))
    return file


def gone(*pids: int) -> bool:
    """Whether all of the processes end within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        if not alive:
            return True
        time.sleep(0.05)
    return False


def pids_of(file: Path) -> list[int]:
    """The process ids that `hang` writes down."""
    deadline = time.monotonic() + 30
    while not Path(f"{file}.whole").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [int(pid) for pid in Path(f"{file}.whole").read_text().split()]


def test_an_answer_comes_apart_from_what_is_printed(script):
    lines: list[str] = []
    request = {"do": "echo", "secret": "é\n'"}
    reply = run_child(script, request, cwd=script.parent, timeout=30, output=lines.extend)
    assert reply["request"] == request and reply["stdin"] == "" and "" not in reply["path"]
    assert lines == ["printed", "from the command", "to stderr"] and gone(reply["pid"])


def test_a_session_answers_in_one_process(script):
    with child_session(script, cwd=script.parent) as child:
        replies = [child.ask({"do": "echo"}, timeout=30) for _ in range(3)]
    assert [reply["asked"] for reply in replies] == [1, 2, 3] and len({reply["pid"] for reply in replies}) == 1


def test_large_answers_and_output_go_through(script):
    lines: list[str] = []
    assert run_child(script, {"do": "large"}, cwd=script.parent, timeout=60, output=lines.extend) == "a" * 3_000_000
    assert lines == ["o" * 3_000_000]


def test_a_failure_has_its_traceback(script):
    lines: list[str] = []
    with pytest.raises(ChildError) as failure:
        run_child(script, {"do": "fail"}, cwd=script.parent, timeout=30, output=lines.extend)
    assert failure.value.reason == "ValueError: no such thing" and "in fail" in failure.value.text
    assert lines[0] == "before" and lines[-1] == "ValueError: no such thing"


@pytest.mark.parametrize(
    ("do", "reason", "code"),
    [("leave", "left (exit code 1)", 1), ("killed", "last words (ended by SIGKILL)", -signal.SIGKILL)],
)
def test_a_process_that_ends_without_an_answer_says_how(script, do, reason, code):
    with pytest.raises(ChildError) as failure:
        run_child(script, {"do": do}, cwd=script.parent, timeout=30)
    assert (failure.value.reason, failure.value.returncode) == (reason, code)


def test_a_script_that_is_not_there_says_so(tmp_path):
    with pytest.raises(ChildError, match="No such file"):
        run_child(tmp_path / "none.py", {}, cwd=tmp_path, timeout=30)


def test_a_late_process_is_ended_with_its_children(script, tmp_path):
    with pytest.raises(ChildError, match="no answer within 3 s"):
        run_child(script, {"do": "hang", "pids": str(tmp_path / "pids")}, cwd=tmp_path, timeout=3)
    assert gone(*pids_of(tmp_path / "pids"))


def test_what_a_script_leaves_running_is_ended_after_its_answer(script):
    assert gone(run_child(script, {"do": "leftover"}, cwd=script.parent, timeout=30))


ASK = """
import signal, sys
from pathlib import Path
from dagster_mlops.core.child import run_child
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
run_child(Path(sys.argv[1]), {"do": "hang", "pids": sys.argv[2]}, cwd=".", timeout=None)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_child_ends_with_the_process_that_asks(script, tmp_path, number):
    command = [sys.executable, "-c", ASK, str(script), str(tmp_path / "pids")]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as parent:
        try:
            pids = pids_of(tmp_path / "pids")
            parent.send_signal(number)
            parent.communicate(timeout=20)
        finally:
            parent.kill()
    assert gone(*pids)


FORK = """
import os, time
from dagster_mlops.core import child
_start = child.start

def start(*arguments, **options):
    process = _start(*arguments, **options)
    if os.fork() == 0:  # as multiprocessing does: the copy holds the other end of the child's pipe open
        time.sleep(20)
        os._exit(0)
    return process

child.start = start
"""


def test_a_fork_of_the_asking_process_does_not_keep_the_child_alive(script, tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", FORK + ASK, str(script), str(tmp_path / "pids")])
    pids = pids_of(tmp_path / "pids")
    parent.kill()
    parent.wait()
    assert gone(*pids)


def test_output_is_passed_on_while_the_script_works_and_not_line_by_line(script):
    batches: list[tuple[float, list[str]]] = []
    start = time.monotonic()
    run_child(
        script,
        {"do": "slowly", "lines": 12},
        cwd=script.parent,
        timeout=30,
        output=lambda lines: batches.append((time.monotonic() - start, lines)),
    )
    assert [line for _, lines in batches for line in lines] == [str(n) for n in range(12)]
    assert 3 <= len(batches) <= 6 and batches[-1][0] - batches[0][0] > 1


def test_another_interpreter_needs_nothing_of_ours(script, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    path = run_child(script, {"do": "echo"}, cwd=tmp_path, timeout=30, python=str(bare / "bin" / "python"))["path"]
    assert not any("site-packages" in place and not place.startswith(str(bare)) for place in path)


def test_a_program_is_run_to_its_end_and_ended_when_late(tmp_path):
    done = run_program(["sh", "-c", "cat; echo oops >&2; exit 3"], stdin=b"in", timeout=10)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"in", b"oops\n")
    start = time.monotonic()
    with pytest.raises(ChildError, match="sh did not end within 1 s"):
        run_program(["sh", "-c", f"sleep 600 & echo $! > {tmp_path / 'pid'}; wait"], timeout=1)
    assert time.monotonic() - start < 5 and gone(int((tmp_path / "pid").read_text()))
    with pytest.raises(FileNotFoundError):
        run_program([str(tmp_path / "none")], timeout=1)


def test_a_request_does_not_show_in_the_process_list(script, tmp_path):
    with child_session(script, cwd=tmp_path) as child:
        pid = child.ask({"do": "echo", "secret": "hunter2"}, timeout=30)["pid"]
        process = psutil.Process(pid)
        assert "hunter2" not in json.dumps([process.cmdline(), process.environ(), os.listdir(tmp_path)])
