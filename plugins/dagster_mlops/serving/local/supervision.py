"""Groups of programs that are started again when they end, each with a supervisor that outlives the Dagster run.

A group is the servers of one deployment, or Envoy. Its folder holds all that its supervisor needs, so a supervisor that
was killed is replaced by starting another: its programs go on meanwhile, and `program.py` takes no second copy of them.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dagster_mlops.core.environment import child_environment
from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.private_files import private_folder
from dagster_mlops.core.processes import identity
from dagster_mlops.serving.local import processes
from dagster_mlops.serving.local.program import PARENT

SUPERVISOR, WAITING = "supervisor", "waiting"  # marks of a supervisor, and of a program that is not yet what it runs
_QUICK = 5  # seconds; a program that ends sooner is started again after a pause, which grows


@lazy_dataclass(frozen=True)
class Program:
    """A command, what it gets of the environment beside what any program needs to run, and the file of its output.

    Programs with `preload` are forked from one process that has imported these modules; see :mod:`.forks`.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    preload: Sequence[str] = ()


def start(
    state_dir: Path, role: str, programs: Mapping[str, Program], *, restart: bool = True, grace: float = 10
) -> None:
    """Start a group of programs, by name. None of its processes may be there.

    Args:
        role: The mark of all its processes.
        restart: False for programs that are started again only after :func:`accept`.
        grace: Seconds that workers of a killed program have to end what they have begun.
    """
    remove(state_dir, role)
    folder = private_folder(_folder(state_dir, role))
    sections = [
        "[supervisord]",
        "nodaemon = true",
        "logfile = /dev/null",  # its output goes there, too
        "logfile_maxbytes = 0",
        f"pidfile = {_quoted(folder / 'supervisord.pid')}",
    ]
    # A server is started again and again, and would compile all that it imports: ten seconds for some.
    common = {name: value for name, value in child_environment().items() if name != "PYTHONDONTWRITEBYTECODE"}

    def write(name: str, program: Program) -> Path:
        private_folder(program.log.parent)
        marks = {processes.STATE_DIR: str(state_dir), processes.ROLE: role, processes.PROGRAM: name}
        marks[processes.GROUP] = str(folder)
        spec = {
            "command": list(program.command),
            "environment": {**common, **program.environment, **marks},
            "log": str(program.log),
            "preload": list(program.preload),
            "restart": restart,
            "grace": grace,
        }
        file = folder / f"{name}.json"
        write_atomically(file, json.dumps(spec, indent=1), private=True, durable=True)
        return file

    files = {name: write(name, program) for name, program in programs.items()}
    # Elsewhere, libraries of the system do not stand a fork: https://github.com/python/cpython/issues/77906
    preloads = [name for name, program in programs.items() if program.preload and sys.platform == "linux"]
    if forks := [str(files[name]) for name in preloads]:
        command = [sys.executable, "-P", "-m", f"{__package__}.forks", *forks]
        files[PARENT] = write(PARENT, replace(programs[preloads[0]], command=command))
    for name, file in files.items():
        if str(file) in forks:
            continue
        command = [sys.executable, "-P", "-m", f"{__package__}.program", str(file)]
        sections += [
            f"[program:{name}]",
            f"command = {_quoted(shlex.join(command))}",
            f'environment = {processes.PROGRAM}="{WAITING}"',
            "autorestart = true",
            f"startsecs = {_QUICK}",
            "startretries = 1000000",
            f"stopwaitsecs = {grace:.0f}",
            "killasgroup = true",
        ]
    write_atomically(folder / "supervisord.conf", "\n".join(sections) + "\n", private=True, durable=True)
    ensure(state_dir, role)


def programs(state_dir: Path, role: str) -> dict[str, Program]:
    """The programs of a group, as they were started."""
    specs = {file.stem: json.loads(file.read_text()) for file in sorted(_folder(state_dir, role).glob("*.json"))}
    return {
        name: Program(spec["command"], spec["environment"], Path(spec["log"]), spec.get("preload", ()))
        for name, spec in specs.items()
        if name != PARENT
    }


def ensure(state_dir: Path, role: str) -> bool:
    """Start the supervisor of a group where it does not run; True if it had to be started."""
    if is_supervised(state_dir, role):
        return False
    conf = _folder(state_dir, role) / "supervisord.conf"
    processes.spawn(
        [sys.executable, "-P", "-m", f"{__package__}.upstream", "-c", str(conf)],
        state_dir=state_dir,
        role=role,
        environment={processes.PROGRAM: SUPERVISOR},
        log=state_dir / "logs" / "supervisor.log",
    )
    return True


def accept(state_dir: Path, role: str) -> None:
    """From now on, start the programs of a group again when they end."""
    for file in _folder(state_dir, role).glob("*.json"):
        spec = json.loads(file.read_text())
        if not spec["restart"]:
            write_atomically(file, json.dumps({**spec, "restart": True}, indent=1), private=True, durable=True)


def alive(state_dir: Path, role: str) -> dict[str, bool]:
    """By program of a group, whether it runs; a program that has not been started yet is not among them."""
    return {name: bool(pid) for name, pid in pids(state_dir, role).items()}


def pids(state_dir: Path, role: str) -> dict[str, int]:
    """By program of a group, its process, or 0 where that has ended."""
    return {name: pid for name, pid in _pids(state_dir, role).items() if name != PARENT}


def has_ended(state_dir: Path, role: str) -> bool:
    """True when a program of the group ran and does so no more."""
    return not all(_pids(state_dir, role).values())


def _pids(state_dir: Path, role: str) -> dict[str, int]:
    starts = {file.stem: file.read_text().split() for file in _folder(state_dir, role).glob("*.lock")}
    identities = {name: (last[-1], int(last[-1].split(":")[-2])) for name, last in starts.items() if last}
    return {name: pid if identity(pid) == start else 0 for name, (start, pid) in identities.items()}


def is_supervised(state_dir: Path, role: str) -> bool:
    """True while the supervisor of a group runs."""
    group = processes.marked(state_dir).get(role, [])
    return any(processes.mark(process, processes.PROGRAM) == SUPERVISOR for process in group)


def stop(state_dir: Path, role: str, *, grace: float = 10) -> int:
    """End a group, its supervisor first; returns the number of processes."""
    count = 0
    while group := processes.marked(state_dir).get(role, []):  # a program may have been about to start
        count += processes.stop(group, grace=grace)
    return count


def exists(state_dir: Path, role: str) -> bool:
    """True for a group that can be started again."""
    return (_folder(state_dir, role) / "supervisord.conf").exists()


def keep(state_dir: Path, roles: Collection[str]) -> None:
    """Remove the folders of all groups but some."""
    folders = {_folder(state_dir, role) for role in roles}
    for folder in (state_dir / "run").glob("*"):
        if folder not in folders:
            shutil.rmtree(folder, ignore_errors=True)


def remove(state_dir: Path, role: str) -> None:
    """Remove the folder of a group that has ended: it holds the environment of its programs."""
    shutil.rmtree(_folder(state_dir, role), ignore_errors=True)


def _folder(state_dir: Path, role: str) -> Path:
    return state_dir / "run" / role.replace(":", "-")


def _quoted(text: object) -> str:
    return str(text).replace("%", "%%")
