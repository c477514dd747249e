"""Starts the rotation of a prediction log in a process of its own, with what time others leave it."""

import logging
import subprocess
import sys
import threading
from pathlib import Path

ENOUGH_BYTES = 2**24

_logger = logging.getLogger(__name__)


def rotate_soon(log_dir: str, day: str) -> None:
    """Start a rotation if there are segments of a day before `day`, or many bytes in others.

    Whatever keeps it from that, predictions are logged, and the next segment tries again.
    """
    try:
        files = [file for file in Path(log_dir).iterdir() if file.suffix == ".jsonl"]
        if all(file.name[:10] >= day for file in files) and sum(f.stat().st_size for f in files) < ENOUGH_BYTES:
            return
        # The package stands at another place in a bento, and under another name.
        root = Path(__file__).parents[len(__name__.split(".")) - 1]
        package = __name__.rpartition(".")[0]
        code = f"import sys; sys.path.insert(0, sys.argv[1]); from {package}.rotation import main; main(sys.argv[2])"
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(root), log_dir],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    except OSError as error:
        _logger.warning("The rotation of %s was not started: %s", log_dir, error)
        return
    threading.Thread(target=process.wait, name="rotation", daemon=True).start()
