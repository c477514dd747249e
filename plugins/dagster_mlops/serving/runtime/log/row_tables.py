"""Rows of a prediction log as Arrow tables, with a column for each feature, and back without any difference.

A feature has a typed column where all its values have one type: numbers, text, true and false. Else its column holds
JSON text. What no column can hold stays in ``rest``, as JSON, with all that the rows of a deployment share.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dagster_mlops.serving.runtime.log.row_json import decode, encode
from dagster_mlops.serving.runtime.log.segments import Line

if TYPE_CHECKING:
    import pyarrow as pa

MODEL = ("deployment", "bento", "model_name", "model_version")
PLACE = ("segment", "position")
INPUT = "input."
MOST_FEATURES = 2000
"""Of a row with columns of their own: a row with more keeps its inputs as JSON."""
_METADATA = b"dagster_mlops"
_ROW = ("timestamp", "request_id", "trace_id", "seconds", "inputs", "output")
ABSENT = type("Absent", (), {})()
"""In place of a value that a row does not have, which is not the null that a client has sent."""


def table_of(segment: str, lines: Sequence[Line], only: "frozenset[str] | None" = None) -> "pa.Table":
    """The rows as a table; with `only`, of the features and the output those columns alone."""
    import pyarrow as pa

    rests: dict[int, tuple[str, list[str]]] = {}
    last, time = None, None
    fixed: dict[str, list[Any]] = {name: [] for name in ("request_id", "timestamp", "trace_id", "seconds", "rest")}
    models: list[list[str]] = []
    features: list[Mapping[str, Any]] = []
    outputs: list[Any] = []
    for line in lines:
        row = line.row
        extra = {name: value for name, value in row.items() if name not in _ROW}
        at, inputs = row.get("timestamp"), row.get("inputs")
        if at != last:
            last, time = at, _time(at)
        if at is not None and (time is None or time.isoformat(timespec="microseconds") != at):
            extra["timestamp"] = at
        if not _fits(inputs):
            extra["inputs"], inputs = inputs, {}
        for name, value, fits in (
            ("request_id", row.get("request_id"), _is_text),
            ("trace_id", row.get("trace_id"), _is_text),
            ("seconds", row.get("seconds"), _is_float),
        ):
            if value is not None and not fits(value):
                extra[name], value = value, None
            fixed[name].append(value)
        if extra:
            facts = {**line.shared, **extra}
            rest, model = _text(facts), _model(facts)
        else:
            if id(line.shared) not in rests:
                rests[id(line.shared)] = _text(line.shared), _model(line.shared)
            rest, model = rests[id(line.shared)]
        fixed["timestamp"].append(time)
        fixed["rest"].append(rest)
        models.append(model)
        features.append(inputs or {})
        outputs.append(row.get("output", ABSENT))
    columns: dict[str, Any] = {
        "request_id": pa.array(fixed["request_id"], pa.string()),
        "timestamp": pa.array(fixed["timestamp"], pa.timestamp("us", "UTC")),
        "trace_id": pa.array(fixed["trace_id"], pa.string()),
        "seconds": pa.array(fixed["seconds"], pa.float64()),
        **{name: _shared([model[n] for model in models]) for n, name in enumerate(MODEL)},
        "rest": _shared(fixed["rest"]),
        "segment": _shared([segment] * len(lines)),
        "position": pa.array([line.position for line in lines], pa.int64()),
    }
    forms: dict[str, Sequence[str]] = {}
    names = dict.fromkeys(name for row in features for name in row)
    values = {f"{INPUT}{name}": [row.get(name, ABSENT) for row in features] for name in names if _chosen(name, only)}
    if only is None or "output" in only:
        values["output"] = outputs
    for name, column in values.items():
        columns[name], forms[name] = _column(column)
    return with_forms(pa.table(columns), forms)


def merged(tables: "Sequence[pa.Table]") -> "pa.Table":
    """One table of all rows; a feature whose type differs becomes JSON text."""
    import pyarrow as pa

    all_forms = [metadata(table)["forms"] for table in tables]
    names = list(dict.fromkeys(name for forms in all_forms for name in forms))
    forms: dict[str, Sequence[str]] = {}
    for name in names:
        pairs = [tuple(each.get(name, ["null", "absent"])) for each in all_forms]
        kinds, nulls = ({pair[n] for pair in pairs} - {"null" if n == 0 else ""} for n in (0, 1))
        is_json = len(kinds) > 1 or len(nulls) > 1 or "json" in kinds
        forms[name] = ["json", "absent"] if is_json else [*(kinds or {"null"}), *(nulls or {""})]
    parts = []
    for table, old in zip(tables, all_forms, strict=True):
        columns = {name: table[name] for name in table.column_names if name not in forms}
        for name, (kind, _) in forms.items():
            column = table[name] if name in old else pa.nulls(len(table), _types()[kind])
            if kind == "json" and name in old and old[name][0] != "json":
                column = _as_json(column, old[name][1])
            columns[name] = column.cast(_types()[kind])
        parts.append(pa.table(columns))
    return with_forms(pa.concat_tables(parts).unify_dictionaries(), forms)


def compute() -> Any:
    """The functions of Arrow, which it makes when it is loaded, so that type checkers see none of them."""
    import pyarrow.compute

    return pyarrow.compute


def with_forms(table: "pa.Table", forms: Mapping[str, Sequence[str]], **facts: Any) -> "pa.Table":
    """The table with the forms of its columns, and more facts about itself."""
    forms = {name: form for name, form in forms.items() if name in table.column_names}
    return table.replace_schema_metadata({_METADATA: json.dumps({"forms": forms, **facts})})


def metadata(table: Any) -> dict[str, Any]:
    """The facts in the metadata of a table or a schema, such as the forms of its columns."""
    stored = getattr(table, "schema", table).metadata or {}
    return json.loads(stored.get(_METADATA, b'{"forms": {}}'))


def records(table: "pa.Table", forms: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
    """The whole records of the rows, as they were logged; of a table with some columns, those facts."""
    data = {name: values(table[name], forms.get(name)) for name in table.column_names}
    for name in ("timestamp", "request_id", "trace_id", "seconds"):
        data.setdefault(name, [None] * len(table))
    data.setdefault("output", [ABSENT] * len(table))
    features = [name for name in data if name.startswith(INPUT)]
    for n in range(len(table)):
        record: dict[str, Any] = {}
        if time := data["timestamp"][n]:
            record["timestamp"] = time.astimezone(UTC).isoformat(timespec="microseconds")
        for name in ("request_id", "trace_id", "seconds"):
            if (value := data[name][n]) is not None:
                record[name] = value
        record["inputs"] = {
            name.removeprefix(INPUT): value for name in features if (value := data[name][n]) is not ABSENT
        }
        if (value := data["output"][n]) is not ABSENT:
            record["output"] = value
        yield {**record, **decode(data["rest"][n])}


def values(column: Any, form: Sequence[str] | None) -> list[Any]:
    """The values of a column, where those that a row does not have are :data:`ABSENT`."""
    plain = column.to_pylist()
    if form is None:
        return plain
    kind, null = form
    if kind == "json":
        plain = [None if text is None else (decode(text),) for text in plain]
        return [ABSENT if value is None else value[0] for value in plain]
    return [ABSENT if value is None else value for value in plain] if null == "absent" else plain


def _chosen(name: str, only: "frozenset[str] | None") -> bool:
    return only is None or name in only or f"{INPUT}{name}" in only


def _types() -> dict[str, Any]:
    import pyarrow as pa

    text = pa.string()
    return {"null": pa.null(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": text, "json": text}


def _column(values: list[Any]) -> tuple[Any, list[str]]:
    import pyarrow as pa

    types = set(map(type, values))
    nulls = [null for null, kind in {"null": type(None), "absent": type(ABSENT)}.items() if kind in types]
    kinds = [kind.__name__ for kind in types - {type(None), type(ABSENT)}] or ["null"]
    if len(kinds) == 1 and len(nulls) < 2 and kinds[0] in _types():
        plain = [None if value is ABSENT else value for value in values] if nulls == ["absent"] else values
        try:
            return pa.array(plain, _types()[kinds[0]]), [kinds[0], *(nulls or [""])]
        except (OverflowError, UnicodeEncodeError, pa.ArrowInvalid):
            pass  # beyond 64 bits; halves of surrogate pairs
    text = [None if value is ABSENT else _text(value) for value in values]
    return pa.array(text, pa.string()), ["json", "absent"]


def _as_json(column: Any, null: str) -> Any:
    import pyarrow as pa

    return pa.array(
        [None if value is None and null == "absent" else _text(value) for value in column.to_pylist()], pa.string()
    )


def _shared(texts: list[str]) -> Any:
    import pyarrow as pa

    return pa.array(texts, pa.string()).dictionary_encode()


def _text(value: Any) -> str:
    return encode(value).decode()


def _model(facts: Mapping[str, Any]) -> list[str]:
    return [str(facts.get(name, "")).encode(errors="replace").decode() for name in MODEL]


def _time(text: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC) if time.tzinfo else None
    except (TypeError, ValueError, OverflowError):
        return None


def _fits(inputs: Any) -> bool:
    if inputs is None:
        return True
    return isinstance(inputs, dict) and len(inputs) <= MOST_FEATURES and all(map(_is_text, inputs))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and (value.isascii() or _is_utf8(value))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_float(value: Any) -> bool:
    return isinstance(value, float)
