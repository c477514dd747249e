"""Two frames compared column by column: by a tool where it can, and by structure where nothing else can be said."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.comparison.measure import Comparison, Measures, Score
from dagster_mlops.monitoring.comparison.preparation import aligned, comparable_values
from dagster_mlops.monitoring.comparison.structure import new_values, structural_verdict
from dagster_mlops.monitoring.normalise import Frame


def compare(
    current: Frame,
    reference: Frame,
    measure: Measures | None,
    *,
    columns: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    missing_change: float = 0.1,
    new_change: float = 0.5,
    name: str = "",
) -> Comparison:
    """Compare column by column with the measure's methods.

    A column that changed its kind, went missing or empty in the current data, misses more of its values by the share
    `missing_change`, or is of one value or, for the share `new_change`, of values that the reference does not have, is
    broken. Without a `measure` only that is judged. A column that only one side has counts when `columns` names it.
    Dates, columns empty in the reference, and identifiers (nearly every value its own) are not compared; they are
    broken if they are from another age, or repeat.

    Raises:
        MonitoringError: neither side has a column that `columns` names, or an option is not valid.
    """
    names = list(dict.fromkeys([*reference.kinds, *current.kinds]) if columns is None else columns)
    if nowhere := [column for column in names if column not in {*reference.kinds, *current.kinds}]:
        columns_there = ", ".join(sorted({*reference.kinds, *current.kinds}))
        raise MonitoringError(f"neither side has a column {', '.join(map(repr, nowhere))}; there are {columns_there}.")
    current, reference = aligned(current, reference)
    required = columns is not None
    verdicts = {
        column: structural_verdict(column, current, reference, required=required, missing_change=missing_change)
        for column in names
    }
    comparable = [column for column, verdict in verdicts.items() if verdict is None]
    answer = Comparison([])
    if comparable:
        left, right = comparable_values(comparable, reference, current)
        if measure is None:
            answer = Comparison([Score(c, "too few rows", drifted=False, compared=False) for c in comparable])
        else:
            answer = measure.scores(left, right, options or {}, name=name)
    scores = [
        *(_marked(score, new_values(score.column, current, reference, new_change)) for score in answer.columns),
        *(verdict for verdict in verdicts.values() if verdict is not None),
    ]
    return Comparison(sorted(scores, key=_worst_first), answer.report)


def _marked(score: Score, problem: str) -> Score:
    """The tool's score, of a column that is broken if there is a problem with its values."""
    return dataclasses.replace(score, verdict=problem, drifted=True, compared=True, broken=True) if problem else score


def _worst_first(column: Score) -> tuple[bool, bool, bool, float]:
    """Broken before drifted before stable, then by how far the score is beyond its threshold, either way."""
    if column.score is None or not column.threshold:
        return not column.broken, not column.drifted, not column.compared, -1.0
    beyond = column.beyond or -column.score / column.threshold
    return not column.broken, not column.drifted, not column.compared, -beyond
