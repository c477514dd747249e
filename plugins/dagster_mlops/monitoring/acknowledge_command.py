"""`dagster-mlops acknowledge`: take care of an incident, so that no one is reminded of it."""

from typing import Annotated

import typer

from dagster_mlops.core.commands import HOME_HINT, Home, dagster_instance, errors_shown, fail, quiet
from dagster_mlops.core.terminal import line


def acknowledge(
    check: Annotated[str, typer.Argument(help="The asset check, as asset:check.", show_default=False)],
    incident: Annotated[
        str, typer.Argument(help="The incident, as its alert names it; default: that of the last evaluation.")
    ] = "",
    note: Annotated[str, typer.Option(help="What is being done, for those who look.")] = "",
    by: Annotated[
        str, typer.Option("--as", metavar="NAME", help="Who takes care; default: your user here.", show_default=False)
    ] = "",
    dagster_home: Home = None,
) -> None:
    """Take care of an incident of an asset check: it stays open, and `alert_sensor` sends no more reminders of it.

    The asset's page in Dagster shows it as an observation. Exit code 0: done. 2: the command cannot run.
    """
    import dagster as dg

    from dagster_mlops.core.asset_keys import asset_key
    from dagster_mlops.monitoring.alerts.acknowledgement import acknowledge as write_down
    from dagster_mlops.monitoring.alerts.acknowledgement import expect_incident, open_incident
    from dagster_mlops.promotion.author import user

    asset, _, name = check.rpartition(":")
    if not asset or not name:
        fail(f"{check!r} does not name asset and check, such as deployment:divergence.")
    with dagster_instance(dagster_home) as instance, quiet(), errors_shown():
        if instance is None:
            fail(f"an acknowledgement is kept in Dagster's event log: {HOME_HINT}")
        key = dg.AssetCheckKey(asset_key(asset), name)
        if incident:
            expect_incident(instance, key, incident)
        incident = incident or open_incident(instance, key)
        write_down(instance, key, incident, by=by or user(), note=note)
    typer.echo(line(f"✓ Incident {incident} of {check} is acknowledged."))
