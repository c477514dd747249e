"""Child Pythons of the tests that are forked from a server behave as those that `subprocess` starts."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.support.warm_python import processes

pytestmark = pytest.mark.usefixtures("warm_dvc")


def python(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


def test_code_has_its_own_arguments_folder_environment_and_exit_code(tmp_path):
    code = "import os, sys; print(sys.argv, os.getcwd(), os.environ['A'], 'dvc' in sys.modules); sys.exit('told')"
    done = python("-c", code, "x", env={**os.environ, "A": "7"}, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, f"['-c', 'x'] {tmp_path} 7 True\n") and done.stderr == "told\n"


def test_a_module_a_file_and_a_failure(tmp_path):
    assert python("-m", "json.tool", "--compact", input='{"a": 1}').stdout == '{"a":1}\n'
    (tmp_path / "own.py").write_text("import sys; print(__file__, sys.path[0], __name__)")
    assert python(str(tmp_path / "own.py")).stdout == f"{tmp_path / 'own.py'} {tmp_path} __main__\n"
    failed = python("-c", "raise KeyError('gone')")
    assert failed.returncode == 1 and failed.stderr.endswith("KeyError: 'gone'\n")


def test_a_child_is_killed_interrupted_and_timed_out():
    asleep = [sys.executable, "-B", "-u", "-c", "import time; print('up'); time.sleep(60)"]
    for number in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(
            asleep, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            assert process.stdout and process.stdout.readline() == b"up\n"
            assert os.getpgid(process.pid) == process.pid
            os.killpg(process.pid, number)
            assert process.wait(10) == -number
    with pytest.raises(subprocess.TimeoutExpired):
        python("-c", "import time; time.sleep(60)", timeout=0.2)


def test_descriptors_are_inherited_by_their_number():
    reading, writing = os.pipe()
    assert python("-c", f"import os; os.write({writing}, b'hello')", pass_fds=[writing]).returncode == 0
    os.close(writing)
    assert os.read(reading, 9) == b"hello"
    os.close(reading)


def test_what_an_import_keeps_open_is_not_what_a_child_opens(warm_tools):
    """Feast's import opens files for Prometheus, which its next metric in a fork closes."""
    code = (
        "import os, prometheus_client, sys; files = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)]; "
        "prometheus_client.Gauge('any', 'text'); print(len([os.fstat(file) for file in files]), 'feast' in sys.modules)"
    )
    done = python("-c", code)
    assert done.stdout == "40 True\n", done.stderr


def test_a_process_of_multiprocessing_is_one_too():
    process = processes.Process(target=os._exit, args=(7,))
    process.start()
    process.join(10)
    assert process.exitcode == 7
    process = processes.Process(target=time.sleep, args=(60,))
    process.start()
    process.kill()
    process.join(10)
    assert process.exitcode == -signal.SIGKILL


def test_a_cold_one_imports_everything_itself(cold_python):
    assert python("-c", "import sys; print('dvc' in sys.modules)").stdout == "False\n"
