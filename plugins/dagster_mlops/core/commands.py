"""Errors of the command line, which every sub-command shows in the same way."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from dagster_mlops.core.terminal import lines
from dagster_mlops.errors import DagsterMlopsError


@contextmanager
def errors_shown() -> Iterator[None]:
    """End the command with exit code 2 and the message of an error, without a traceback."""
    try:
        yield
    except DagsterMlopsError as error:
        typer.echo(lines(f"dagster-mlops: {error}", indent="  "), err=True)
        raise typer.Exit(2) from error
