"""Files that a kill cut off are put aside; what a person or a merge wrote is left alone."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dagster_mlops.core.private_files import private_folder
from dagster_mlops.errors import DatasetError


def set_aside(file: Path, tmp_dir: str | None) -> Path:
    """Move a pointer or ``dvc.lock`` that a kill cut off below `tmp_dir`: DVC would refuse every command with it.

    DVC writes such files in place. Nothing is deleted, not even here.

    A file that is cut off is empty, or ends in the middle of a line and is right up to that line. Editors and merges
    end a file with a whole line, or break it further up.

    Raises:
        DatasetError: the file cannot be read, but is not cut off.
    """
    content = file.read_bytes()
    lines = content.splitlines()
    if any(line.startswith((b"<<<<<<<", b">>>>>>>")) for line in lines):
        raise DatasetError(
            f"{file} is in the conflict of a merge. Resolve it (`git checkout --ours` or `--theirs`, or by hand: keep "
            f"the entries of both sides) and `git add {file.name}`, then re-run."
        )
    reason = problem_of(content)
    if content.strip(b"\0\n ") and (content.endswith(b"\n") or (reason and reason[1] < len(lines) - 1)):
        text = f"line {reason[1] + 1}: {reason[0]}" if reason else "it lacks what DVC writes there"
        raise DatasetError(
            f"{file} cannot be read: {text}. Correct it, or take back git's copy: `git checkout HEAD -- {file.name}`."
        )
    place = Path(tmp_dir or file.parent, "dagster_mlops", "cut_off", f"{file.name}.{time.time_ns()}")
    private_folder(place.parent)
    file.rename(place)
    return place


def problem_of(content: bytes) -> tuple[str, int] | None:
    """The reason why a text is not YAML, and the line where it shows, from 0; None if it is YAML."""
    try:
        return None if isinstance(parse_yaml(content), Mapping) else ("it is not a mapping", 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return str(error.problem or error.context), mark.line if mark else 0
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return str(error), 0


def parse_yaml(content: bytes) -> Any:
    """The content of a pointer, ``dvc.yaml`` or ``dvc.lock``."""
    return yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # in C, ten times as fast
