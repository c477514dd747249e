"""Environment variables, with many tools the only way to a setting: for a limited time, and those of a project."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Set environment variables (None: unset), and restore them at the end, even if they changed meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def project_folder() -> Path:
    """The Dagster project around the working directory, which ``dg`` would use; else the working directory."""
    start = Path.cwd()
    return next((folder for folder in (start, *start.parents) if _is_project(folder)), start)


def add_project_environment() -> None:
    """Add the variables of the project's ``.env`` file, as ``dg`` does; those of the environment stay as they are."""
    file = project_folder() / ".env"
    if file.is_file():
        from dotenv import dotenv_values

        _set({name: value for name, value in dotenv_values(file).items() if value and name not in os.environ})


def _is_project(folder: Path) -> bool:
    file = folder / "pyproject.toml"
    return (folder / "dg.toml").is_file() or (file.is_file() and "[tool.dg" in file.read_text(errors="replace"))


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
