"""The progress of a watch in files, of which the sensor's cursor names one.

Dagster stores a cursor after the events of its tick. A tick that is killed before that is repeated with the cursor
before, which names the file before: it reads the same rows, and comes to the same verdicts. The progress itself would
be too much for a cursor, as Dagster keeps that of each tick.
"""

import json
import re
import time
import uuid
from pathlib import Path

from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.private_files import private_folder
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.live.progress import Progress

_FORM = 1
_CURSOR = re.compile(r"(?:([0-9a-f]{8})-)?([0-9]{1,12})")
_LEFT_BEHIND = 30 * 86_400  # seconds after which the files of a watch that has gone are removed


class StateFiles:
    """The files of one watch, ``<watch>-<number>.json``, at most two of them.

    Each watch has a name of its own: two instances of Dagster may look at one log, and neither removes the other's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, cursor: str) -> Progress:
        """The progress that a cursor names.

        Raises:
            MonitoringError: It cannot be read: someone has removed it, or it is that of another version.
        """
        try:
            stored = json.loads(self._file(cursor).read_text())
            if stored["form"] != _FORM:
                raise ValueError(f"form {stored['form']}")
            return Progress.from_dict(stored["progress"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise MonitoringError(
                f"the state {cursor[:40]!r} in {self.folder} cannot be read ({type(error).__name__}: {error})."
            ) from error

    def write(self, progress: Progress, before: str | None) -> str:
        """Write the next file, and return the cursor that names it. That of `before` stays, those before it go.

        Raises:
            MonitoringError: The folder cannot be written.
        """
        match = _CURSOR.fullmatch(before or "")
        watch, number = (match[1] or "", int(match[2]) + 1) if match else (uuid.uuid4().hex[:8], 1)
        cursor = f"{watch}-{number}" if watch else str(number)
        try:
            private_folder(self.folder)
            write_atomically(
                self._file(cursor), json.dumps({"form": _FORM, "progress": progress.to_dict()}), private=True
            )
            for file in self.folder.glob("*.json"):
                if other := _CURSOR.fullmatch(file.stem):
                    is_ours = (other[1] or "") == watch
                    is_old = int(other[2]) not in (number, number - 1) if is_ours else _is_left_behind(file)
                    if is_old:
                        file.unlink(missing_ok=True)
        except OSError as error:
            raise MonitoringError(
                f"the watch cannot write its state: {error}. Point divergence_sensor(state_dir=…) at a folder that "
                "this process may write."
            ) from error
        return cursor

    def _file(self, cursor: str) -> Path:
        if not _CURSOR.fullmatch(cursor):
            raise ValueError("the cursor names no file")
        return self.folder / f"{cursor}.json"


def _is_left_behind(file: Path) -> bool:
    try:
        return time.time() - file.stat().st_mtime > _LEFT_BEHIND
    except FileNotFoundError:  # its watch has removed it
        return False
