"""The same comparison once more within each segment of the rows, such as one carrier."""

from collections.abc import Callable
from typing import Any

from dagster_mlops.core.metadata import shorten, table
from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.comparison.decision import Decision
from dagster_mlops.monitoring.comparison.measure import Comparison
from dagster_mlops.monitoring.normalise import Frame

_MOST = 10  # segments: those with the most rows of the reference


def judge_segments(
    segment: str,
    current: Frame,
    reference: Frame,
    compare: Callable[[Frame, Frame, str], Comparison],
    decision: Decision,
    *,
    tool: str,
    min_rows: int,
) -> tuple[list[str], dict[str, Any]]:
    """The problems of the ten largest segments, and a table of them; one with too few rows is not judged.

    Raises:
        MonitoringError: a side has no column `segment`, or it is of numbers or dates.
    """
    for frame, whose in ((current, "the checked asset"), (reference, "the reference")):
        if frame.kinds.get(segment) != "category":
            kind = frame.kinds.get(segment)
            fault = f"holds {kind}s" if kind else "is not there"
            raise MonitoringError(f"segment={segment!r} {fault} in {whose}. Name a column of categories.")
    problems: list[str] = []
    rows: list[dict[str, Any]] = []
    commonest: Any = reference.data[segment].value_counts().index[:_MOST]
    for value in commonest:
        rows_now, rows_before = (frame.where(frame.data[segment] == value) for frame in (current, reference))
        counts = len(rows_now.data), len(rows_before.data)
        row = {"segment": shorten(str(value), 60), "rows": counts[0], "reference rows": counts[1]}
        if min(counts) < min_rows:
            rows.append({**row, "drift share": "", "verdict": f"not judged: fewer than {min_rows} rows"})
            continue
        result = compare(rows_now, rows_before, str(value))
        problem = decision.problem(result)
        if problem:
            problems.append(f"{segment} {shorten(str(value), 60)}: {problem}")
        share = f"{decision.share(result):.2f}"
        rows.append({**row, "drift share": share, "verdict": problem or "ok"})
    return problems, table(f"{tool}/segments", rows)
