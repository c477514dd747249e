"""The `dagster-mlops` command: where a prediction comes from, and what is in production."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dagster_mlops import __version__
from dagster_mlops.core.commands import (
    HOME_HINT,
    NO_INSTANCE,
    USAGE,
    Home,
    Json,
    dagster_instance,
    end,
    errors_shown,
    fail,
    quiet,
    refuse_bytes,
)
from dagster_mlops.core.private_files import private_folder
from dagster_mlops.core.terminal import line, lines
from dagster_mlops.monitoring.acknowledge_command import acknowledge
from dagster_mlops.monitoring.backtest_command import backtest
from dagster_mlops.promotion.approve_command import approve
from dagster_mlops.promotion.commands import app as history_app
from dagster_mlops.promotion.rollback_command import rollback


class _Root(TyperGroup):
    """All commands: what they are given is text."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        refuse_bytes(args)
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Root,
    help="The life of a model across Dagster, DVC, Feast, MLflow, BentoML and Evidently.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_Allow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PLACE",
        help="Further place at which tools may be asked, with what lies below it. Others are --at, those in the "
        "environment, and those at which the runs of the Dagster instance have made something.",
        show_default=False,
    ),
]


app.add_typer(history_app, name="history")
app.command()(rollback)
app.command()(approve)
app.command()(acknowledge)
app.command()(backtest)


def main() -> None:
    """Run the command, with those that plugins add in the entry-point group ``dagster_mlops.commands``."""
    for entry in entry_points(group="dagster_mlops.commands"):
        # A plugin's imports take a second, which the other commands need not wait for.
        commands = _load(entry) if entry.name in sys.argv[1:2] else _not_loaded()
        app.add_typer(commands, name=entry.name, help=f"Commands of {entry.name}.")
    app()


def _load(entry: EntryPoint) -> typer.Typer:
    try:
        commands = entry.load()
        if isinstance(commands, typer.Typer):
            return commands
        reason = "not a typer.Typer"
    except Exception as error:  # noqa: BLE001 - whatever a plugin's import raises
        from dagster_mlops.provenance import mask_credentials

        reason = mask_credentials(f"{type(error).__name__}: {error}")
    text = f"dagster-mlops: the commands {entry.name!r} ({entry.value}) cannot be loaded: {reason}"
    typer.echo(lines(text, indent="  "), err=True)
    sys.exit(USAGE)


def _not_loaded() -> typer.Typer:
    placeholder = typer.Typer()
    placeholder.callback()(lambda: None)
    return placeholder


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"dagster-mlops {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def trace(
    what: Annotated[
        str,
        typer.Argument(
            help="A request id; MODEL@ALIAS, MODEL/VERSION or MODEL; a run id; a version that Dagster's UI shows; or a "
            "ref such as dvc:dataset:raw.csv@9f2c….",
            show_default=False,
        ),
    ],
    at: Annotated[
        str, typer.Option(help="Place where the tool keeps the ref: a tracking URI, a repository or a store.")
    ] = "",
    log: Annotated[
        list[Path] | None, typer.Option(help="Prediction log to search; default: the logs of all known deployments.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.1, help="Seconds that a tool may take for an answer; default: ten.", show_default=False),
    ] = None,
    allow: _Allow = None,
    as_json: Json = False,
    dagster_home: Home = None,
) -> None:
    """Trace a prediction, model or dataset to the exact data, features, model and code that it was made from.

    Exit code 0: the chain is complete. 1: a link is unknown or not accessible. 2: nothing was found, or the command is
    wrong.
    """
    # Dagster takes a second to import, which `--help` need not wait for.
    from dagster_mlops.lineage.chain.names import find_ref
    from dagster_mlops.lineage.chain.sources import EventLog, Tools
    from dagster_mlops.lineage.chain.tree import chain_tree
    from dagster_mlops.lineage.chain.walk import trace as trace_ref

    with dagster_instance(dagster_home) as instance, quiet(), errors_shown():
        events, tools = EventLog(instance) if instance else None, Tools(timeout=timeout, allow=allow or ())
        log_variable = os.environ.get("DAGSTER_MLOPS_PREDICTION_LOG")
        logs = [str(folder.absolute()) for folder in log or ()] or ([log_variable] if log_variable else None)
        ref = find_ref(what, at=at, logs=logs, tools=tools, events=events)
        chain = trace_ref(ref, tools=tools, instance=events)
    end(chain, chain_tree, chain.complete, as_json, hint="" if instance else NO_INSTANCE)


@app.command()
def status(as_json: Json = False, dagster_home: Home = None) -> None:
    """Show what is in production, since when, on which data, and whether all checks hold.

    Exit code 0: production answers and every check holds. 1: one of them does not. 2: there is no Dagster instance.
    """
    from dagster_mlops.lineage.production.overview import status as status_of
    from dagster_mlops.lineage.production.screen import status_screen

    with dagster_instance(dagster_home) as instance, quiet():
        if not instance:
            fail(f"there is no Dagster instance to ask: {HOME_HINT}")
        production = status_of(instance)
    end(production, status_screen, production.healthy, as_json)


class _Environment(StrEnum):
    new = "new"
    current = "current"


@app.command()
def reproduce(
    what: Annotated[
        str,
        typer.Argument(
            help="Training to run again: a run id, MODEL@ALIAS, MODEL/VERSION, MODEL, or what else `trace` takes, such "
            "as a prediction of its model.",
            show_default=False,
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what can be restored, without running anything.")
    ] = False,
    explain: Annotated[
        tuple[str, str] | None, typer.Option(help="Show why two trainings differ.", metavar="A B")
    ] = None,
    environment: Annotated[
        _Environment,
        typer.Option(help="Install the recorded lock file into a new environment, or use the current environment."),
    ] = _Environment.new,
    golden: Annotated[
        Path | None,
        typer.Option(help="Parquet file of model inputs to compare predictions on; default: the run's reference."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Largest allowed relative difference of metrics and predictions.")
    ] = 1e-9,
    timeout: Annotated[float, typer.Option(min=1.0, help="Time limit of the training in seconds.")] = 6 * 3600.0,
    keep: Annotated[
        Path | None, typer.Option(help="New folder to work in and to keep; default: a temporary folder.")
    ] = None,
    at: Annotated[str, typer.Option(help="Tracking URI; default: the one in Dagster's event log.")] = "",
    repo: Annotated[Path | None, typer.Option(help="Checkout of the code; default: the recorded one.")] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(help="Environment variable that the training may see, or a pattern such as 'AWS_*'; repeatable."),
    ] = None,
    definitions: Annotated[
        Path | None, typer.Option(help="File with the definitions, where they are outside of the checkout.")
    ] = None,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes",
            help="Run uncommitted changes, and install packages, that only the tracker has: those of a run that the "
            "event log of Dagster does not have.",
        ),
    ] = False,
    allow: _Allow = None,
    as_json: Json = False,
    dagster_home: Home = None,
) -> None:
    """Run a training again with its recorded code, data and environment, and compare the result.

    Exit code 0: same result (--dry-run: everything can be restored; --explain: no difference). 1: another result.
    2: the command cannot run. 3: too little can be compared to tell.
    """
    from dagster_mlops.lineage.chain.sources import EventLog, Tools
    from dagster_mlops.lineage.reproduction import screen as screens
    from dagster_mlops.lineage.reproduction.comparison import explain as explain_runs
    from dagster_mlops.lineage.reproduction.recipe import find_recipe
    from dagster_mlops.lineage.reproduction.rerun import rerun

    if bool(what) == bool(explain):
        fail("name one training, as in `dagster-mlops reproduce MODEL@champion`, or two with --explain A B.")
    if keep and keep.exists():
        fail(f"--keep {keep} already exists. Name a new folder.")
    with (
        dagster_instance(dagster_home) as instance,
        quiet(),
        errors_shown(),
        _ended_by_sigterm(),
        ExitStack() as resources,
    ):
        tools, events = Tools(allow=allow or ()), EventLog(instance) if instance else None
        unknown = False
        try:
            places = {"at": at, "repo": repo, "definitions": definitions}
            recipes = [find_recipe(name, **places, tools=tools, events=events) for name in explain or [what]]
            recipe = recipes[0].in_environment(environment.value)
            if explain:
                why = explain_runs(*recipes)
                result, screen, same = why, screens.explanation_screen, not why.causes
            elif dry_run or not recipe.complete:
                result, screen, same = recipe, screens.recipe_screen, recipe.complete
                unknown = bool(recipe.complete and recipe.unknown)
            else:
                if keep:
                    private_folder(keep.absolute())  # data and models are copied into it
                folder = keep or Path(resources.enter_context(TemporaryDirectory(prefix="dagster-mlops-rerun-")))
                verdict = rerun(
                    recipe,
                    folder.absolute(),
                    environment=environment.value,
                    golden=golden,
                    tolerance=tolerance,
                    timeout=timeout,
                    variables=env or (),
                    consent=yes,
                    tools=tools,
                    tell=lambda text: typer.echo(line(text), err=True),
                )
                result, screen, same = verdict, screens.verdict_screen, verdict.reproduced
                unknown = verdict.strength == "too little to tell"
        except OSError as error:  # a full disk, a folder that cannot be made: no answer, rather than "not the same"
            fail(f"the training cannot be run again here: {error}")
    end(result, screen, same, as_json, unknown=unknown)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Clean up when asked to end, as after Ctrl-C: processes that were started end, too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
