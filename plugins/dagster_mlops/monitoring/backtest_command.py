"""`dagster-mlops backtest`: the alarms that a detector would have raised over a history."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from dagster_mlops.core.commands import Json, end, errors_shown, fail, quiet
from dagster_mlops.core.terminal import line


def backtest(
    history: Annotated[
        Path, typer.Argument(help="Parquet or CSV file, or the folder of a prediction log.", show_default=False)
    ],
    time: Annotated[
        str, typer.Option(help="Column with the time of a row; a prediction log has one.", show_default=False)
    ] = "",
    columns: Annotated[
        list[str] | None, typer.Option("--column", help="Column to watch, repeatable; all by default.")
    ] = None,
    categories: Annotated[
        list[str] | None, typer.Option("--category", help="Column of numbers that stand for categories; repeatable.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of a window.", show_default=False)] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, max=527_040, help="Length of a window, in place of --rows.", show_default=False),
    ] = None,
    alarms: Annotated[float, typer.Option(help="False alarms that you accept for the whole model …")] = 1.0,
    per_days: Annotated[float, typer.Option(min=1, max=3660, help="… in so many days.")] = 30.0,
    last_days: Annotated[
        float, typer.Option(min=1, max=36_600, help="Days at the end of the history that are judged.")
    ] = 90.0,
    zone: Annotated[str, typer.Option(help="Time zone of the users, such as Europe/Vienna.")] = "UTC",
    minimum_effect: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Smallest share of rows whose distribution has to change.")
    ] = 0.0,
    splits: Annotated[
        int, typer.Option(min=0, max=1000, help="Random halvings of the history to measure the rate; 0: no rate.")
    ] = 5,
    inject: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INCIDENT",
            help="Incident to put in, such as 'temp: missing from 2013-11-01'; also 'is VALUE', 'times NUMBER', 'plus "
            "NUMBER [sd]', 'swapped with COLUMN', 'in 30 % from DATE to DATE'. Repeatable.",
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="PNG or HTML file to write the scores to.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the alarms that monitoring would have raised over a history, and when it would have caught incidents.

    Exit code 0: the asked rate of false alarms lies in the interval of the measured one, and every incident was caught.
    1: it does not, or one was not. 2: the command cannot run. 3: the history is too short to measure the rate.
    """
    from dagster_mlops.monitoring.backtest.injection import Injection
    from dagster_mlops.monitoring.backtest.picture import expect_picture, save_picture
    from dagster_mlops.monitoring.backtest.reading import read_history
    from dagster_mlops.monitoring.backtest.run import backtest as run_backtest
    from dagster_mlops.monitoring.backtest.screen import backtest_screen

    if rows is not None and minutes is not None:
        fail("a window has either --rows or --minutes: name one of them.")
    every = timedelta(minutes=minutes) if minutes else None
    if columns and time in columns:
        fail(f"--column {time} is the column of the times: name the others.")
    with quiet(), errors_shown():
        if picture:
            expect_picture(picture)
        injections = [Injection.read(text) for text in inject or ()]
        frame, time_column = read_history(history, time, columns)
        result = run_backtest(
            frame,
            time=time_column,
            columns=columns,
            categories=categories or (),
            rows=None if every else rows or 1000,
            every=every,
            alarms=alarms,
            per=timedelta(days=per_days),
            minimum_effect=minimum_effect,
            zone=zone,
            last=timedelta(days=last_days),
            splits=splits,
            injections=injections,
            tell=lambda text: typer.echo(line(text), err=True),
        )
        if picture:
            save_picture(result, picture)
    good = (result.rate is None or result.rate.holds) and all(catch.caught for catch in result.catches)
    end(result, backtest_screen, good, as_json, unknown=good and result.rate is None and splits > 0)
