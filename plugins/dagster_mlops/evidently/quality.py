"""Evidently's summary of one table, for people to look at."""

from collections.abc import Sequence
from typing import Any

from dagster_mlops.core.extras import extra
from dagster_mlops.evidently.upstream import one_histogram_per_column
from dagster_mlops.monitoring.normalise import Frame

# A column of more distinct words is one of identifiers. Evidently counts and stores each label of a category by itself:
# that took half the time of a check on 30,000 flights, and no one reads them.
MOST_LABELS = 1_000


def summarise(evidently: Any, frame: Frame, columns: Sequence[str], *, tags: Sequence[str]) -> Any:
    """A snapshot of `columns`, which are of numbers or text. Identifiers are summed up: how many, how many missing."""
    words = [name for name in columns if frame.kinds[name] == "category"]
    labels = [name for name in words if frame.data[name].nunique() <= MOST_LABELS]
    typed = {"categorical_columns": labels, "text_columns": [name for name in words if name not in labels]}
    preset = extra("evidently.presets").DataSummaryPreset(columns=list(columns))
    dataset = evidently.dataset(frame, list(columns), **typed)
    with one_histogram_per_column():
        return evidently.run([preset], dataset, tags=tags)
