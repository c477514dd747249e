"""All labelled rows, and each segment of them, judged as one question."""

from typing import Any

from dagster_mlops.core.metadata import shorten
from dagster_mlops.monitoring.performance.judgement import Line, Terms, judge

_MOST = 10  # segments: those with the most rows


def judge_parts(
    labelled: Any,
    baseline: Any,
    target: str,
    prediction: str,
    terms: Terms,
    *,
    segment: str | None,
    min_labels: int,
) -> list[Line]:
    """The lines of the whole, then of the ten largest segments. One with few rows, in either table, is not judged."""

    def pair(rows: Any) -> Any:
        return None if rows is None else (rows[target].to_numpy(), rows[prediction].to_numpy(dtype=float))

    def large(rows: Any) -> bool:
        return len(rows) >= min_labels and rows[target].nunique() > 1

    parts = {"": (labelled, baseline)}
    if segment:
        for value in labelled[segment].value_counts().index[:_MOST]:
            rows = labelled[labelled[segment] == value]
            earlier = None if baseline is None else baseline[baseline[segment] == value]
            if large(rows) and (earlier is None or large(earlier)):
                parts[f"{segment} {shorten(value, 60)}"] = rows, earlier
    questions = len(parts) * max(len(terms.metrics), 1)
    return [
        line
        for part, (rows, earlier) in parts.items()
        for line in judge(pair(rows), pair(earlier), terms, questions=questions, segment=part)
    ]
