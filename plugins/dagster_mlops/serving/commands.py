"""`dagster-mlops serving`: show, repair, roll back or stop the deployments of a state folder."""

import json
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from dagster_mlops.core.commands import errors_shown
from dagster_mlops.core.terminal import line, lines

app = typer.Typer(help="Deployments on this machine.", no_args_is_help=True)
_LogDir = Annotated[Path, typer.Argument(help="Folder of the prediction log.", show_default=False)]
_StateDir = Annotated[Path, typer.Argument(help="The deployment's state_dir.", show_default=False)]


@app.command()
def status(state_dir: _StateDir) -> None:
    """Print every deployment that has not ended, or the failure of the last one, as JSON.

    Exit code 0: one answers through its public port; 1: none does; 2: the folder cannot be read.
    """
    from dagster_mlops.serving.local.overview import status as status_of

    with errors_shown():
        rows = status_of(state_dir)
    typer.echo(json.dumps(rows, indent=1))
    raise typer.Exit(0 if any(row["healthy"] for row in rows) else 1)


@app.command()
def stop(state_dir: _StateDir) -> None:
    """Stop every server and the proxy of the folder; the prediction log and the history stay."""
    from dagster_mlops.serving.local.overview import stop as stop_all

    with errors_shown():
        typer.echo(f"stopped {stop_all(state_dir)} process(es)")


@app.command()
def repair(state_dir: _StateDir) -> None:
    """Start again what has ended, and undo changes of Envoy's files; nothing happens where all is well.

    It needs no Dagster: run it after a reboot, or from a timer.
    """
    from dagster_mlops.serving.local.reconcile import repair as repair_all

    with errors_shown():
        for action in repair_all(state_dir):
            typer.echo(line(action))


@app.command()
def compact(log_dir: _LogDir) -> None:
    """Make Parquet files of the finished segments of a prediction log, as its servers do from time to time."""
    from dagster_mlops.core.extras import extra
    from dagster_mlops.errors import DeploymentError

    with errors_shown():
        for module in ("orjson", "pyarrow"):
            extra(module)
        from dagster_mlops.serving.runtime.log.rotation import rotate

        if not log_dir.is_dir():
            raise DeploymentError(f"{log_dir} is not a folder. Name that of a prediction log.")
        typer.echo(line(f"{rotate(log_dir)} segment(s) became Parquet"))


@app.command()
def rollback(state_dir: _StateDir) -> None:
    """Serve the package before the live one again, verified on its golden rows; again: return to the live one.

    The deployment asset does not undo it: asked for the same package, it changes nothing and says so.
    """
    from dagster_mlops.serving.local.former import rollback as roll_back

    with errors_shown():
        live = roll_back(state_dir)
    typer.echo(line(f"{live.id} serves {live.record.package}; {live.undone_package} was rolled back."))


@app.command()
def logs(
    state_dir: _StateDir,
    name: Annotated[str, typer.Argument(help="Id of a deployment, `envoy` or `supervisor`; the last deployment.")] = "",
    count: Annotated[int, typer.Option("--lines", help="Lines from the end.", min=0)] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing what is added.")] = False,
) -> None:
    """Print the end of a log, with credentials masked."""
    from dagster_mlops.core.waits import wait_while
    from dagster_mlops.provenance import mask_credentials
    from dagster_mlops.serving.local.overview import log_file

    with errors_shown():
        file = log_file(state_dir, name)
    with file.open(errors="replace") as stream:
        last = deque(stream, maxlen=count)
        typer.echo(lines(mask_credentials("".join(last))), nl=False)

        def print_more() -> bool:
            typer.echo(lines(mask_credentials("".join(stream.readlines()))), nl=False)
            return follow

        wait_while(print_more, timeout=float("inf"), error=RuntimeError, pause=0.5)
