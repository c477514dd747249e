"""Predictions among the columns of a history, and their places in what a model answers and a prediction log holds."""

from collections.abc import Iterable, Mapping
from typing import Any

from dagster_mlops.core.arrays import pd
from dagster_mlops.serving.runtime.log.frames import FACTS

OUTPUT = "output"
_INPUT = "input."
_NEEDED = ("timestamp", "model_version", OUTPUT)  # facts of the log that a watch reads
_ALSO_READ = (*_NEEDED, "seconds")


def bad_place(place: str) -> bool:
    """True for a text that names no part of an output.

    >>> [bad_place(place) for place in ("output", "output.late", "late")]
    [False, False, True]
    """
    return place != OUTPUT and not (place.startswith(f"{OUTPUT}.") and place.removeprefix(f"{OUTPUT}."))


def logged_names(columns: Iterable[str]) -> list[str]:
    """The names of the columns of a history in a log, where a feature may be ``input.<name>``, and of its facts."""
    return list(dict.fromkeys([*_ALSO_READ, *(name for column in columns for name in (column, f"{_INPUT}{column}"))]))


def with_outputs(frame: "pd.DataFrame", outputs: Mapping[str, str]) -> "pd.DataFrame":
    """Rows of a log with the columns of a history: features under their own names, parts of outputs under theirs.

    Args:
        frame: Rows as :meth:`PredictionLog.read` gives them: a feature that has the name of a fact of the log, such as
            ``seconds``, is ``input.seconds`` there.
        outputs: The part of an output by column: ``output`` is the whole, ``output.late`` the value of the key `late`,
            ``output.0`` the first of a list. A row without that part has None.
    """
    for plain in FACTS:  # a client may send a feature of any name, also one that begins like this
        if plain not in _NEEDED and f"{_INPUT}{plain}" in frame:
            frame[plain] = frame[f"{_INPUT}{plain}"]
    for column, place in outputs.items():
        if place != column:
            values: Any = frame[OUTPUT]
            frame[column] = values if place == OUTPUT else _parts(values, place)
    return frame


def _parts(outputs: "pd.Series", place: str) -> "pd.Series":
    key = place.removeprefix(f"{OUTPUT}.")

    def part(output: Any) -> Any:
        if isinstance(output, Mapping):
            return output.get(key)
        if isinstance(output, list) and key.isdecimal() and int(key) < len(output):
            return output[int(key)]
        return None

    return outputs.map(part)
