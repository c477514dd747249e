"""`dagster-mlops rollback`: return an alias to an earlier version, or lift that."""

from typing import Annotated

import typer

from dagster_mlops.core.commands import Home, Json, dagster_instance, end, errors_shown, fail, quiet
from dagster_mlops.promotion.commands import Model, Registry


def rollback(
    model: Model,
    reason: Annotated[str, typer.Option(help="The reason, for the history.", show_default=False)],
    alias: Annotated[str, typer.Option(help="Alias to move.")] = "champion",
    to: Annotated[
        str,
        typer.Option(
            metavar="VERSION",
            help="Version to return to; default: the one that held the alias before, without those that were rolled "
            "back from or deleted.",
            show_default=False,
        ),
    ] = "",
    lift: Annotated[
        str,
        typer.Option(
            metavar="VERSION",
            help="Move nothing, and let this version, which was rolled back from, be promoted again.",
            show_default=False,
        ),
    ] = "",
    registry: Registry = "",
    as_json: Json = False,
    dagster_home: Home = None,
) -> None:
    """Return an alias to the version that held it before. The version that it leaves is not promoted until you lift it.

    A move of the alias to that version by hand lifts it, too. Exit code 0: done. 1: done, but Dagster does not know it
    yet. 2: the command cannot run.
    """
    from dagster_mlops.promotion.author import Author, user
    from dagster_mlops.promotion.rollback import lift as lift_rollback
    from dagster_mlops.promotion.rollback import roll_back
    from dagster_mlops.promotion.screens import rollback_screen
    from dagster_mlops.promotion.sources import find_sources

    if not reason.strip():
        fail('a rollback needs a reason, which the history keeps: --reason "wrong prices since Monday".')
    if to and lift:
        fail("--to moves the alias, and --lift moves nothing: name one of them.")
    with dagster_instance(dagster_home) as instance, quiet(), errors_shown():
        sources, author = find_sources(model, instance, registry), Author(user())
        if lift:
            outcome = lift_rollback(sources, alias, lift, reason=reason, author=author)
        else:
            outcome = roll_back(sources, alias, to=to, reason=reason, author=author)
    end(outcome, rollback_screen, not outcome.problem, as_json)
