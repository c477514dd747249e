"""`dagster-mlops history`: read, verify and restore the history of a model's aliases."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dagster_mlops.core.commands import HOME_HINT, Home, Json, dagster_instance, end, errors_shown, fail, quiet
from dagster_mlops.core.terminal import line

_NO_LOG = f"Only the registry was asked. To compare it with Dagster's event log: {HOME_HINT}"


class _ModelOrCommand(TyperGroup):
    """Takes a model in place of a sub-command: `history MODEL` is `history show MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ModelOrCommand,
    help="History of a model's aliases: `history MODEL` shows it.",
    no_args_is_help=True,
    subcommand_metavar="MODEL | COMMAND",
)
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the registered model.", show_default=False)]
Registry = Annotated[
    str,
    typer.Option(
        metavar="PLACE",
        help="Model registry: MLflow's tracking URI, or the folder of a git repository. Default: where the model was "
        "promoted last, by Dagster's event log; else MLFLOW_TRACKING_URI, or the repository around the working "
        "directory.",
        show_default=False,
    ),
]
_Keys = Annotated[
    list[Path] | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="File with a public key that you trust, beside those in DAGSTER_MLOPS_PUBLIC_KEYS; may be repeated.",
        show_default=False,
    ),
]


@app.command()
def show(
    model: Model,
    alias: Annotated[str, typer.Option(help="Only this alias; default: all.", show_default=False)] = "",
    at: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Show the version that held each alias at this time: 2026-05-01T12:00, in UTC unless it has a time "
            "zone. A date is its end, so that the moves of that day count. A move by hand counts from when it was "
            "noticed.",
            show_default=False,
        ),
    ] = "",
    registry: Registry = "",
    as_json: Json = False,
    dagster_home: Home = None,
) -> None:
    """Show the moves of a model's aliases, newest first: when, from which version to which, author and reason.

    The registry answers or, where its history is gone, Dagster's event log. Exit code 0: there is a history. 2: there
    is none, or the command cannot run.
    """
    # Dagster takes a second to import, which `--help` need not wait for.
    from dagster_mlops.promotion.reading import holders_at, read_history, read_time
    from dagster_mlops.promotion.screens import history_screen, holders_screen
    from dagster_mlops.promotion.sources import find_sources

    with dagster_instance(dagster_home) as instance, quiet(), errors_shown():
        time = read_time(at) if at else None
        reading = read_history(find_sources(model, instance, registry), alias)
        answer = holders_at(reading, time) if time else reading
    screen = holders_screen if time else history_screen
    end(answer, screen, True, as_json)


@app.command()
def verify(
    model: Model,
    key: _Keys = None,
    files: Annotated[
        bool, typer.Option("--files", help="Download the files of the versions that hold aliases, and hash them.")
    ] = False,
    registry: Registry = "",
    as_json: Json = False,
    dagster_home: Home = None,
) -> None:
    """Verify a history: the registry against Dagster's event log, signatures, order, and who holds the aliases now.

    Exit code 0: it holds. 1: something was changed, is missing, or was moved by hand. 2: the command cannot run.
    """
    from dagster_mlops.promotion.audit import audit
    from dagster_mlops.promotion.history.envelope import trusted_keys
    from dagster_mlops.promotion.screens import verification_screen
    from dagster_mlops.promotion.sources import find_sources

    with dagster_instance(dagster_home) as instance, quiet(), errors_shown():
        verification = audit(find_sources(model, instance, registry), trusted_keys(key or ()), files=files)
    end(verification, verification_screen, verification.holds, as_json, hint="" if instance else _NO_LOG)


@app.command()
def restore(
    model: Model, key: _Keys = None, registry: Registry = "", as_json: Json = False, dagster_home: Home = None
) -> None:
    """Write the entries that the registry or Dagster's event log lacks, from the other one; none is replaced.

    What is there is verified first. Nothing is written when the two differ in an entry.
    """
    from dagster_mlops.promotion.audit import restore as restore_history
    from dagster_mlops.promotion.history.envelope import trusted_keys
    from dagster_mlops.promotion.screens import restored_screen
    from dagster_mlops.promotion.sources import find_sources

    with dagster_instance(dagster_home) as instance, quiet(), errors_shown():
        if instance is None:
            fail(f"there is no Dagster instance to restore from: {HOME_HINT}")
        restored = restore_history(find_sources(model, instance, registry), trusted_keys(key or ()))
    end(restored, restored_screen, True, as_json)


@app.command()
def key(
    file: Annotated[Path, typer.Argument(help="New file for the private key; the public one is FILE.pub.")],
) -> None:
    """Make a key that signs histories: set DAGSTER_MLOPS_SIGNING_KEY to FILE where promotions run."""
    from dagster_mlops.promotion.history.envelope import PUBLIC_KEYS, SIGNING_KEY, new_key

    public_file = file.with_name(f"{file.name}.pub")
    with errors_shown():
        private, public = new_key()
    try:
        for path, text, mode in ((file, private, 0o600), (public_file, public, 0o644)):
            if path.exists():
                raise FileExistsError(f"{path} is there already, and keys are not replaced")
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as opened:
                opened.write(text)
    except OSError as error:
        fail(f"no key was written: {error}. Name a new file.")
    typer.echo(line(f"{SIGNING_KEY}={file.absolute()}       # where promotions run, and nowhere else"))
    typer.echo(line(f"{PUBLIC_KEYS}={public_file.absolute()}   # where histories are verified"))
