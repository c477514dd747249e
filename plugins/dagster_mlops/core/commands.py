"""Parts that the commands share: exit codes, options, errors, the Dagster instance, the output."""

import codecs
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import click
import typer

from dagster_mlops.core.terminal import error_line, is_utf8, lines
from dagster_mlops.errors import DagsterMlopsError

if TYPE_CHECKING:
    import dagster as dg
    from rich.console import RenderableType

COMPLETE, INCOMPLETE, USAGE, UNKNOWN = 0, 1, 2, 3
"""Exit codes: the answer is good, it is not, the command cannot run, too little is known."""

Home = Annotated[
    Path | None, typer.Option(help="Folder of the Dagster instance (with dagster.yaml); default: $DAGSTER_HOME.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@contextmanager
def errors_shown() -> Iterator[None]:
    """End the command with exit code 2 and the message of an error, without a traceback.

    Errors of the machine, and those that libraries define, are about a place: a database that is read-only, a full
    disk. Python's others are mistakes of ours, and keep their traceback.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, click.ClickException):
        raise
    except DagsterMlopsError as error:
        typer.echo(lines(f"dagster-mlops: {error}", indent="  "), err=True)
        raise typer.Exit(USAGE) from error
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__ == "builtins":
            raise
        fail(
            f"{error_line(error)}. If this names a database or a folder: it may be read-only, locked or out "
            "of reach, or its disk is full. Put that right, and run the command again."
        )


def refuse_bytes(arguments: Iterable[str]) -> None:
    """End the command if an argument is not text in UTF-8, which no place could store or find."""
    for argument in arguments:
        if not is_utf8(argument):
            fail(f"an argument is not text in UTF-8: {argument[:100]!a}.")


HOME_HINT = "set DAGSTER_HOME to the folder that holds its dagster.yaml, or pass --dagster-home DIR."
NO_INSTANCE = f"Only the tools were asked. To fill gaps from Dagster's event log: {HOME_HINT}"


@contextmanager
def dagster_instance(home: Path | None) -> "Iterator[dg.DagsterInstance | None]":
    """The instance of `home`, $DAGSTER_HOME or a ``dg dev`` that runs without both; None if there is none of them."""
    from dagster_mlops.core.environment import add_project_environment, environment, project_folder

    add_project_environment()
    temporary = [str(history.parent) for history in project_folder().glob(".tmp_dagster_home_*/history")]
    folder = home or next(map(Path, filter(None, [os.environ.get("DAGSTER_HOME"), *temporary])), None)
    if not folder:
        yield None
        return
    folder = folder.absolute()
    # Dagster would silently found an empty instance in any folder that exists.
    if not any((folder / name).exists() for name in ("dagster.yaml", "history", "storage")):
        fail(f"{folder} holds no Dagster instance (no dagster.yaml, history or storage): {HOME_HINT}")
    import dagster as dg

    with environment(DAGSTER_HOME=str(folder)):
        try:
            instance = dg.DagsterInstance.get()
        except Exception as error:  # noqa: BLE001 - a database that is down, a bad dagster.yaml: any reason is worth telling
            fail(f"the Dagster instance of {folder} cannot be opened: {type(error).__name__}: {error}")
        with instance:
            yield instance


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what tools print and warn out of the answer."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


_SPELLED = {"✓": "+", "✗": "x", "×": "x", "→": "->", "…": "...", "·": "-", "↑": "^"}


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Replacement of characters that a terminal without Unicode cannot show."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_SPELLED.get(char, "?") for char in error.object[error.start : error.end]), error.end


def end(
    result: Any,
    screen: "Callable[[Any], RenderableType]",
    good: bool,
    as_json: bool,
    *,
    hint: str = "",
    unknown: bool = False,
) -> NoReturn:
    """Print a result, and end with the exit code that says whether it is good."""
    from rich.console import Console

    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            codecs.register_error("dagster_mlops.spell", _spell)
            sys.stdout.reconfigure(errors="dagster_mlops.spell")
        Console(highlight=False).print(screen(result))
        if hint:
            typer.echo(hint)
    raise typer.Exit(UNKNOWN if unknown else COMPLETE if good else INCOMPLETE)


def fail(message: str) -> NoReturn:
    """End the command with a message, as one that cannot run."""
    from dagster_mlops.provenance import mask_credentials

    typer.echo(lines(f"dagster-mlops: {mask_credentials(message)}", indent="  "), err=True)
    raise typer.Exit(USAGE)
