"""`dagster-mlops approve`: decide about the version of a model that waits for an alias."""

from typing import Annotated

import typer

from dagster_mlops.core.commands import Home, dagster_instance, errors_shown, quiet
from dagster_mlops.core.terminal import line
from dagster_mlops.promotion.commands import Model, Registry


def approve(
    model: Model,
    version: Annotated[str, typer.Argument(help="The version; default: the only one that waits.")] = "",
    alias: Annotated[str, typer.Option(help="Alias that it waits for.")] = "champion",
    comment: Annotated[str, typer.Option(help="Reason, for the history.")] = "",
    by: Annotated[
        str, typer.Option("--as", metavar="NAME", help="Who decides; default: your user here.", show_default=False)
    ] = "",
    reject: Annotated[bool, typer.Option("--reject", help="Reject it.")] = False,
    registry: Registry = "",
    dagster_home: Home = None,
) -> None:
    """Approve the version that waits for an alias, or reject it. The next run of the promotion asset moves the alias.

    Exit code 0: the decision is in the history. 2: no version waits, or the command cannot run.
    """
    # Dagster takes a second to import, which `--help` need not wait for.
    from dagster_mlops.promotion.author import user
    from dagster_mlops.promotion.decisions import decide, outcome
    from dagster_mlops.promotion.history.entry import APPROVAL, REJECTION
    from dagster_mlops.promotion.history.event_log import identity, mirror_now
    from dagster_mlops.promotion.sources import find_sources
    from dagster_mlops.promotion.verdict import HOLDS
    from dagster_mlops.provenance import mask_credentials

    kind = REJECTION if reject else APPROVAL
    with dagster_instance(dagster_home) as instance, quiet(), errors_shown():
        sources = find_sources(model, instance, registry)
        with sources.models() as models:
            entry, history = decide(models, model, kind, by=by or user(), why=comment, version=version, alias=alias)
            row = outcome(history, entry)
        if instance:
            for promoter in sources.here(identity(history.texts[0])):
                mirror_now(instance, promoter.key, promoter.tool, history, mask_credentials(sources.place))
    text = f"{entry.kind} of version {entry.after} of {model} for {alias} by {entry.by}: entry {entry.index}"
    typer.echo(line(text))
    if row:
        typer.echo(line(f"{row.rule}: {row.verdict}; {row.why}"))
    if row is None or row.verdict == HOLDS:
        typer.echo("Materialize the promotion asset to move the alias; approval_sensor() does it by itself.")
