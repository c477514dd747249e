"""`dagster-mlops approve`: decide about the version of a model that waits for an alias."""

from typing import Annotated

import typer

from dagster_mlops.core.commands import Home, Json, dagster_instance, end, errors_shown, quiet
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
    as_json: Json = False,
    dagster_home: Home = None,
) -> None:
    """Approve the version that waits for an alias, or reject it. The next run of the promotion asset moves the alias.

    Exit code 0: the decision is recorded. 1: it is recorded and does not count, because this person may not decide
    about this version. 2: nothing is recorded, because no version waits, or the command cannot run. 3: it is recorded,
    and Dagster's event log does not have it yet, or what it changes is unknown.
    """
    # Dagster takes a second to import, which `--help` need not wait for.
    from dagster_mlops.promotion.author import user
    from dagster_mlops.promotion.decision_outcome import decide_at
    from dagster_mlops.promotion.history.entry import APPROVAL, REJECTION
    from dagster_mlops.promotion.screens import decision_screen
    from dagster_mlops.promotion.sources import find_sources

    kind = REJECTION if reject else APPROVAL
    with dagster_instance(dagster_home) as instance, quiet(), errors_shown():
        sources = find_sources(model, instance, registry)
        decision = decide_at(sources, kind, by=by or user(), why=comment, version=version, alias=alias)
    end(decision, decision_screen, decision.counts, as_json, unknown=bool(decision.problem))
