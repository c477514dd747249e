"""The progress of a watch in files, of which the sensor's cursor names one.

Dagster stores a cursor after the events of its tick. A tick that is killed before that is repeated with the cursor
before, which names the file before: it reads the same rows, and comes to the same verdicts. The progress itself would
be too much for a cursor, as Dagster keeps that of each tick.
"""

import json
from pathlib import Path

from dagster_mlops.core.files import write_atomically
from dagster_mlops.core.private_files import private_folder
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.live.progress import Progress

_FORM = 1


class StateFiles:
    """The files of one watch: ``<number>.json``, at most two of them."""

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
        number = int(before) + 1 if before and before.isdecimal() else 1
        cursor = str(number)
        try:
            private_folder(self.folder)
            write_atomically(
                self._file(cursor), json.dumps({"form": _FORM, "progress": progress.to_dict()}), private=True
            )
            for file in self.folder.glob("*.json"):
                if file.stem.isdecimal() and int(file.stem) not in (number, number - 1):
                    file.unlink(missing_ok=True)
        except OSError as error:
            raise MonitoringError(
                f"the watch cannot write its state: {error}. Point divergence_sensor(state_dir=…) at a folder that "
                "this process may write."
            ) from error
        return cursor

    def _file(self, cursor: str) -> Path:
        if not cursor.isdecimal():
            raise ValueError("the cursor is not a number")
        return self.folder / f"{cursor}.json"
