"""From the verdicts on columns to the verdict of a check."""

from collections.abc import Mapping
from typing import NamedTuple

from dagster_mlops.monitoring.comparison.measure import Comparison, Score

_NAMED = 6  # columns that a sentence names


class Decision(NamedTuple):
    """The columns that make a check fail: a broken or far drifted one by itself, the others by their share."""

    drift_share: float = 0.5
    alarm_at: float | None = 3.0
    importance: Mapping[str, float] = {}

    def share(self, result: Comparison) -> float:
        """The drifted columns of the compared ones, by importance."""
        return result.weighted_share(self.importance)

    def alarms(self, result: Comparison) -> list[Score]:
        """The columns that are an alarm by themselves. One of no importance never is."""
        far = self.alarm_at
        return [
            column
            for column in result.columns
            if self.importance.get(column.column, 1.0) > 0
            and (column.broken or (far is not None and column.drifted and column.beyond >= far))
        ]

    def problem(self, result: Comparison) -> str:
        """The reasons why the check fails; empty if it does not."""
        alarms = self.alarms(result)
        texts = []
        if broken := [f"{c.column} ({c.verdict})" for c in alarms if c.broken]:
            texts.append(f"Broken: {'; '.join(broken[:_NAMED])}.")
        if far := [c.column for c in alarms if not c.broken]:
            texts.append(f"Far from the reference: {', '.join(far[:_NAMED])}.")
        if self.share(result) >= self.drift_share or alarms:
            return " ".join([*texts, self.summary(result)])
        return ""

    def summary(self, result: Comparison) -> str:
        """The drifted columns in a sentence."""
        drifted = ", ".join(result.drifted[:_NAMED])
        return f"{len(result.drifted)} of {len(result.compared)} columns drifted{f': {drifted}' if drifted else '.'}"
