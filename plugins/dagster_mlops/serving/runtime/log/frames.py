"""Rows of a prediction log as dataframes: a column for each feature, with the values as they were logged."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dagster_mlops.serving.runtime.log.row_json import decode
from dagster_mlops.serving.runtime.log.row_tables import (
    ABSENT,
    INPUT,
    MODEL,
    compute,
    merged,
    metadata,
    records,
    values,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

FACTS = ("request_id", "timestamp", *MODEL, "trace_id", "seconds")


def frame_of(
    tables: "Iterable[pa.Table]", columns: "Collection[str] | None" = None, *, absent: bool = False
) -> "pd.DataFrame":
    """The rows of all tables, oldest first. With `absent`, a column that no row has is left out.

    Raises:
        ValueError: no row has one of the `columns`.
    """
    import pandas as pd

    parts = list(tables)
    is_empty = not parts
    if parts:
        table = merged(parts)
        parts.clear()
        keys = [("timestamp", "ascending"), ("request_id", "ascending")]
        frame = _frame(table.take(compute().sort_indices(table, sort_keys=keys)), columns)
    else:
        frame = pd.DataFrame({name: [] for name in (*FACTS, "output")}, dtype=object)
        frame["timestamp"] = pd.to_datetime(frame["timestamp"], utc=True)
    if columns is None:
        return frame.reindex(columns=[*(name for name in frame.columns if name != "output"), "output"])
    if absent:
        return frame.reindex(columns=[name for name in columns if name in frame.columns])
    if not is_empty and (missing := [name for name in columns if name not in frame.columns]):
        raise ValueError(
            f"no row has {', '.join(map(repr, missing))}: not a feature, nor one of {', '.join(FACTS)}, output."
        )
    return frame.reindex(columns=list(columns))


def _frame(table: "pa.Table", columns: "Collection[str] | None") -> "pd.DataFrame":
    import pandas as pd

    forms = metadata(table)["forms"]
    rests = table["rest"].combine_chunks().dictionary.to_pylist()
    if any('"inputs"' in text and "inputs" in decode(text) for text in rests):
        series = pd.DataFrame([_row(record) for record in records(table, forms)]).to_dict("series")
        series["timestamp"] = table["timestamp"].to_pandas()
    else:
        names = [name for name in (*FACTS, *forms) if name in table.column_names]
        chosen_names = [name for name in names if columns is None or _title(name) in columns]
        series = {_title(name): _series(table[name], name, forms) for name in chosen_names}
    if "timestamp" in series:
        with suppress(pd.errors.OutOfBoundsDatetime):  # a clock that is centuries off
            series["timestamp"] = series["timestamp"].dt.as_unit("ns")
    return pd.DataFrame(series)


def _series(column: Any, name: str, forms: Mapping[str, Sequence[str]]) -> "pd.Series":
    import pandas as pd

    kind = forms.get(name, [""])[0]
    if kind == "json":
        return pd.Series([None if value is ABSENT else value for value in values(column, forms[name])])
    if kind == "int" and column.null_count:  # as numbers with a fraction, where those are exact
        largest = max(map(abs, compute().min_max(column).as_py().values()))
        return column.to_pandas(integer_object_nulls=largest > 2**53)
    return (column.cast("string") if name in MODEL else column).to_pandas()


def _row(record: dict[str, Any]) -> dict[str, Any]:
    inputs = record.get("inputs")
    features = inputs if isinstance(inputs, dict) else {}
    facts = {name: record.get(name) for name in FACTS}
    return {
        **facts,
        **{_title(f"{INPUT}{name}"): value for name, value in features.items()},
        "output": record.get("output"),
    }


def _title(name: str) -> str:
    plain = name.removeprefix(INPUT)
    return name if plain in FACTS or plain == "output" else plain
