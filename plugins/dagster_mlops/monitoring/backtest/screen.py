"""The screen of `dagster-mlops backtest`."""

from datetime import timedelta

from rich.console import Group, RenderableType
from rich.text import Text

from dagster_mlops.core.screens import conclusion, grid
from dagster_mlops.core.terminal import line
from dagster_mlops.monitoring.backtest.result import Backtest


def backtest_screen(result: Backtest) -> RenderableType:
    """Alarms, incidents, and the rate as the last line."""
    table = grid("dim", "", "")
    for alarm in result.alarms:
        windows = f"{alarm.windows} window{'s' if alarm.windows > 1 else ''}"
        table.add_row(f"{alarm.start:%Y-%m-%d %H:%M}", f"alarm, {windows}", "; ".join(alarm.columns))
    for catch in result.catches:
        outcome = f"caught after {_length(catch.delay)}" if catch.delay else "not caught"
        table.add_row(f"{catch.start:%Y-%m-%d %H:%M}", outcome, f"{catch.incident}: {'; '.join(catch.columns) or '–'}")
    days = (result.until - result.since) / timedelta(days=1)
    count = f"{len(result.alarms)} alarm{'' if len(result.alarms) == 1 else 's'}"
    period = f"{count} in {days:.0f} days from {result.since:%Y-%m-%d}, times in UTC. {result.promise}"
    if result.rate is None:
        last: RenderableType = Text("The rate was not measured: half of the history is too short.", style="yellow")
    else:
        rate = result.rate
        measured = f"{rate.measured:.2f} alarms in 30 days ({rate.low:.2f} to {rate.high:.2f}), {rate.asked:.2f} asked"
        last = conclusion(rate.holds, f"Measured {measured}.", f"Measured {measured}: the promise does not hold here.")
    return Group(table, Text(), Text(line(period), style="dim"), last)


def _length(delay: timedelta | None) -> str:
    minutes = (delay or timedelta(0)) / timedelta(minutes=1)
    return f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.0f} minutes"
