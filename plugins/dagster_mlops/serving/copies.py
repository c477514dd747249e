"""Copies of the modules that serve a model: a package holds them, so that it needs neither Dagster nor this library."""

import re
from collections.abc import Sequence
from pathlib import Path

from dagster_mlops.core import model_digest, private_files
from dagster_mlops.serving import runtime

PACKAGE = "dagster_mlops_serving"
_RUNTIME = Path(runtime.__file__).parent
_OURS = re.compile(r"\bdagster_mlops\.(?:serving\.runtime|core)\b")


def modules() -> list[Path]:
    """The modules that each package gets, in a folder named PACKAGE."""
    return [
        *sorted(_RUNTIME.rglob("*.py")),
        Path(model_digest.__file__),
        Path(private_files.__file__),
        Path(private_files.__file__).with_name("lazy_door.py"),
    ]


def write_copies(folder: Path, files: Sequence[Path]) -> None:
    """Write copies of `files` that import each other from PACKAGE."""
    for file in files:
        copy = folder / (file.relative_to(_RUNTIME) if file.is_relative_to(_RUNTIME) else file.name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(_OURS.sub(PACKAGE, file.read_text()))
