"""`dagster-mlops feast`: rebuild a training set."""

from pathlib import Path
from typing import Annotated

import typer

from dagster_mlops.core.commands import errors_shown
from dagster_mlops.core.terminal import line

app = typer.Typer(help="Training sets of a Feast repository.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `rebuild` a sub-command although it is the only one."""


@app.command()
def rebuild(
    ref: Annotated[str, typer.Argument(help="Training set: its ref, its id, or the beginning of its content hash.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    repo: Annotated[str, typer.Option(help="Folder with feature_store.yaml.")] = ".",
    dvc: Annotated[
        str | None, typer.Option(help="DVC repository to read from; default: the repositories in the record.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="PLACE", help="Repository in the record that may be opened, or a folder above it."),
    ] = None,
) -> None:
    """Rebuild a training set from its recorded data and definitions, and verify that it is the same."""
    from dagster_mlops.feast.rebuild import replay
    from dagster_mlops.feast.resource import FeastResource

    with errors_shown():
        datasets = replay.datasets_of(dvc, allow=[dvc]) if dvc else None
        record = replay.rebuild_file(FeastResource(repo=repo), ref, out, datasets=datasets, allow=allow or ())
    typer.echo(line(f"Rebuilt {record.ref.id} in {out}: {record.rows} rows, content {record.content_hash}."))
