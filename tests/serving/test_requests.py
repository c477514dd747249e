"""Requests: every type of MLflow's signatures is checked, and none is wrapped, rounded or guessed."""

import base64
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.models.utils import _enforce_schema
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array, Map, Object, Property

from dagster_mlops.serving.runtime.requests import RequestReader, ids_of_rows
from dagster_mlops.serving.runtime.schema import Features
from tests.support import known_warnings

pytestmark = [*known_warnings.MLFLOW, *known_warnings.MLFLOW_HINTS]

POINT = Object([Property("x", DataType.double), Property("label", DataType.string, required=False)])
COLUMNS = {
    "flag": ColSpec("boolean", "flag"),
    "small": ColSpec("integer", "small"),
    "big": ColSpec("long", "big"),
    "single": ColSpec("float", "single"),
    "wind": ColSpec("double", "wind"),
    "carrier": ColSpec("string", "carrier"),
    "blob": ColSpec("binary", "blob"),
    "at": ColSpec("datetime", "at"),
    "numbers": ColSpec(Array(DataType.long), "numbers"),
    "point": ColSpec(POINT, "point"),
    "by_name": ColSpec(Map(DataType.double), "by_name"),
    "whatever": ColSpec(AnyType(), "whatever", required=False),
    "note": ColSpec("string", "note", required=False),
}
ROW: dict[str, Any] = {
    "flag": True,
    "small": -7,
    "big": 2**62,
    "single": 0.5,
    "wind": 12.25,
    "carrier": "AA",
    "blob": base64.b64encode(b"\x00\xff").decode(),
    "at": "2026-03-01T12:30:00Z",
    "numbers": [1, 2],
    "point": {"x": 1.5},
    "by_name": {"a": 1.0},
}


def reader(
    *names: str, params: ParamSchema | None = None, most_rows: int = 1000, most_bytes: int = 2**24
) -> tuple[Features, RequestReader]:
    features = Features(Schema([COLUMNS[name] for name in names or COLUMNS]))
    return features, RequestReader(features, params, most_rows=most_rows, most_bytes=most_bytes)


def asked(body: Any, *names: str, **options: Any) -> Any:
    return reader(*names, **options)[1].json(body if isinstance(body, bytes) else json.dumps(body).encode())


def test_a_row_of_every_type_becomes_the_frame_that_mlflow_accepts():
    features, read = reader()
    request = read.json(json.dumps({"rows": [{**ROW, "unknown": 1}, {**ROW, "note": "n", "wind": None}]}).encode())
    frame = features.frame(request.values)
    schema = Schema(list(COLUMNS.values()))
    pd.testing.assert_frame_equal(_enforce_schema(frame.copy(), schema)[list(frame)], frame, check_dtype=False)
    numbers = ["flag", "small", "big", "single", "wind"]
    assert [str(frame[name].dtype) for name in numbers] == ["bool", "int32", "int64", "float32", "float64"]
    assert frame.loc[0, "big"] == 2**62 and frame.loc[0, "blob"] == b"\x00\xff"
    assert frame.loc[0, "at"] == pd.Timestamp("2026-03-01T12:30:00")
    assert np.isnan(frame["wind"].tolist()[1]) and list(frame["note"]) == [None, "n"] and "whatever" not in frame
    assert request.inputs[0] == {**ROW, "at": "2026-03-01T12:30:00.000000000"}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("flag", 1, "Expected `bool`, got `int`"),
        ("flag", None, "Expected `bool`, got `null`"),
        ("small", 2**31, "<= 2147483647"),
        ("small", 3.5, "Expected `int`, got `float`"),
        ("small", True, "Expected `int`, got `bool`"),
        ("big", 2**63, "<= 9223372036854775807"),
        ("big", -(2**63) - 1, "9223372036854775808"),
        ("big", int("9" * 401), "<= 9223372036854775807"),
        ("wind", int("9" * 401), "Number out of range"),
        ("big", "7", "Expected `int`, got `str`"),
        ("single", 1e39, "<= 3.4028234663852886e+38"),
        ("wind", "12", "Expected `float | null`, got `str`"),
        ("wind", True, "got `bool`"),
        ("carrier", 5, "Expected `str | null`, got `int`"),
        ("blob", "%%", "Invalid base64"),
        ("at", "now", "Expected a time such as"),
        ("at", 1772368200, "Expected a time such as"),
        ("at", "2026-02-30T00:00:00", "out of range"),
        ("at", "0001-01-01", "between the years 1678 and 2262"),
        ("at", "2026-03-01T12:30:00+99:00", "Expected a time such as"),
        ("numbers", [1, 2.5], "got `float` - at `$.rows[0].numbers[1]`"),
        ("point", {"label": "x"}, "missing required field `x`"),
        ("by_name", {"a": "b"}, "Expected `float`, got `str`"),
    ],
)
def test_a_value_that_is_not_of_its_type_is_refused_and_named(name, value, reason):
    with pytest.raises(ValueError) as refusal:
        asked({"rows": [{name: value}]}, name)
    assert reason in str(refusal.value) and f"$.rows[0].{name}" in str(refusal.value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "truncated"),
        (b"[1]", "Expected `object`"),
        (b'{"rows": []}', "length >= 1"),
        (b'{"rows": [{"wind": 1}], "row": 1}', "unknown field `row`"),
        (b'{"rows": [{"wind": NaN}]}', "malformed"),
        (b'{"rows": [{"wind": 1e400}]}', "out of range"),
        (b'{"rows": [{"carrier": "\\ud800"}]}', ""),
        (b'{"rows": ' + b"[" * 100_000, "Expected `object`"),
        (b'{"rows": [{}]}', "missing required field `wind` - at `$.rows[0]`"),
        (b'{"rows": [{"wind": 1}, {"wind": 2}, {"wind": 3}]}', "length <= 2"),
        (b'{"rows": [{"wind": 1}], "ids": ["a b"]}', "$.ids[0]"),
        (b'{"rows": [{"wind": 1}], "params": {"n": 1}}', "unknown field `params`"),
        (b"\xff\xfe", "malformed"),
    ],
)
def test_a_body_that_is_no_request_is_refused(body, reason):
    with pytest.raises(ValueError) as refusal:
        asked(body, "wind", most_rows=2)
    assert reason in str(refusal.value)


def test_parameters_of_the_model_are_checked_as_the_features_are():
    schema = ParamSchema([ParamSpec("quantile", "double", 0.5), ParamSpec("tags", "string", ["a"], (-1,))])
    request = asked({"rows": [{"wind": 1}], "params": {"quantile": 1}}, "wind", params=schema)
    assert request.params == {"quantile": 1.0}
    assert asked({"rows": [{"wind": 1}]}, "wind", params=schema).params is None
    for bad in ({"quantile": "x"}, {"other": 1}, {"tags": "a"}):
        with pytest.raises(ValueError):
            asked({"rows": [{"wind": 1}], "params": bad}, "wind", params=schema)


def test_rows_without_any_optional_feature_are_still_rows():
    features, read = reader("note", "whatever")
    assert features.frame(read.json(b'{"rows": [{}, {}]}').values).shape == (2, 0)


def test_an_integer_may_be_written_with_a_zero_behind_its_point():
    request = asked(b'{"rows": [{"small": 3.0, "big": 9007199254740992.0}]}', "small", "big")
    assert request.values == [(3, 2**53)] and request.inputs == [{"small": 3, "big": 2**53}]
    assert reader("small")[0].checked([{"small": 3.0}]) == [(3,)]
    for bad in ("3.5", "1e300", "9007199254740994.0"):
        with pytest.raises(ValueError, match="Expected `int`, got `float`"):
            asked(f'{{"rows": [{{"small": 1, "big": {bad}}}]}}'.encode(), "small", "big")


def test_times_keep_their_nanoseconds_and_are_utc():
    values = ["2026-03-01T14:30:00+02:00", "2026-03-01 12:30:00.123456789", "2026-03-01"]
    features, read = reader("at")
    frame = features.frame(read.json(json.dumps({"rows": [{"at": at} for at in values]}).encode()).values)
    wanted = ["2026-03-01T12:30:00", "2026-03-01T12:30:00.123456789", "2026-03-01"]
    assert list(frame["at"]) == [pd.Timestamp(at) for at in wanted]


def test_rows_in_arrow_are_the_rows_in_json():
    features, read = reader("small", "big", "wind", "carrier", "blob", "at", "note")
    local = timezone(timedelta(hours=2))
    table = pa.table(
        {
            "carrier": ["AA", None],
            "small": pa.array([1, -1], pa.int64()),
            "big": pa.array([2**62, 0], pa.int64()),
            "wind": pa.array([0.5, None], pa.float64()),
            "blob": pa.array([b"\x00", b""], pa.binary()),
            "at": pa.array([datetime(2026, 3, 1, 14, tzinfo=local), datetime(2026, 3, 1, tzinfo=UTC)]),
            "request_id": ["a", "b"],
            "unknown": [1, 2],
        }
    )
    request = read.arrow(in_arrow(table))
    assert request.ids == ["a", "b"]
    rows = [
        {"carrier": "AA", "small": 1, "big": 2**62, "wind": 0.5, "blob": "AA==", "at": "2026-03-01T12:00:00Z"},
        {"carrier": None, "small": -1, "big": 0, "wind": None, "blob": "", "at": "2026-03-01T00:00:00Z"},
    ]
    same = read.json(json.dumps({"rows": rows}).encode())
    assert request.inputs == same.inputs and request.values == same.values
    with pytest.raises(ValueError, match="2147483647"):
        read.arrow(in_arrow(table.set_column(1, "small", pa.array([2**31, 0], pa.int64()))))
    with pytest.raises(ValueError, match="missing required field `big`"):
        read.arrow(in_arrow(table.drop(["big"])))
    for body in (b"", b"ARROW1", in_arrow(table)[:200], in_arrow(table.slice(0, 0))):
        with pytest.raises(ValueError):
            read.arrow(body)
    assert features.names[0] == "small"


def many_of_one(value: Any, kind: Any = None) -> dict[str, Any]:
    """Columns of 1000 rows that share a value of a column, in each way that Arrow has for it."""
    one, zeros = pa.array([value], kind), pa.array([0] * 1000, pa.int32())
    ends = pa.RunEndEncodedArray.from_arrays(pa.array([1000], pa.int32()), one)
    columns = {"dictionary": pa.DictionaryArray.from_arrays(zeros, one), "run ends": ends}
    if pa.types.is_string(one.type):
        columns["view"] = pa.array([value] * 1000, pa.string_view())
    lengths = pa.array([1] * 1000, pa.int32())
    columns["list view"] = pa.ListViewArray.from_arrays(zeros, lengths, one)
    columns["dictionary in a list"] = pa.ListArray.from_arrays(
        pa.array([*range(1001)], pa.int32()), pa.DictionaryArray.from_arrays(zeros, one)
    )
    return columns


def test_an_arrow_body_is_refused_before_it_takes_more_memory_than_its_rows_may_have():
    _, read = reader("carrier", most_bytes=100_000)
    empty = {
        "nulls": pa.FixedSizeListArray.from_arrays(pa.nulls(1_000_000), 1_000_000),
        "bits": pa.array([[True] * 200_000]),
        "records": pa.array([[{}] * 200_000], pa.list_(pa.struct([]))),
        "keys": pa.array([[("a", None)] * 200_000], pa.map_(pa.string(), pa.null())),
    }
    for name, column in {**many_of_one("a" * 10_000), **empty}.items():
        with pytest.raises(ValueError, match=r"more than 100,000 bytes|is not supported"):
            pytest.fail(f"{name}: {len(read.arrow(in_arrow(pa.table({'carrier': column}))).values)} rows")
    plain = pa.table({"carrier": ["AA"]})
    for compression in ("lz4", "zstd"):
        for table in (plain, pa.table({"carrier": plain["carrier"].dictionary_encode()})):
            with pytest.raises(ValueError, match="must not be compressed"):
                read.arrow(in_arrow(table, compression))
    beside = pa.table({"carrier": ["AA"], "other": ["a" * 200_000], "views": pa.array(["a"], pa.string_view())})
    assert read.arrow(in_arrow(beside)).values == [("AA",)], "what is no feature does not count"
    frame = pd.DataFrame({"carrier": pd.Categorical(["AA", "UA", None, "AA"])})
    assert read.arrow(in_arrow(pa.Table.from_pandas(frame))).values == [("AA",), ("UA",), (None,), ("AA",)]


@pytest.mark.thorough
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_arrow_body_is_refused_or_read(data):
    whole = in_arrow(pa.table({"carrier": pa.array(["AA", "UA"]).dictionary_encode(), "wind": [0.5, None]}))
    body = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        assert len(reader("carrier", "wind")[1].arrow(bytes(body)).values) <= 1000


def in_arrow(table: pa.Table, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)), min_size=1)
)
def test_numbers_reach_the_model_as_they_were_sent_by_frame_and_by_matrix(rows):
    features, read = reader("big", "wind")
    request = read.json(json.dumps({"rows": [{"big": big, "wind": wind} for big, wind in rows]}).encode())
    frame = features.frame(request.values)
    assert list(frame["big"]) == [big for big, _ in rows] and list(frame["wind"]) == [wind for _, wind in rows]
    matrix = features.matrix(request.values)
    if matrix is None:
        assert any(abs(big) >= 2**53 for big, _ in rows)
    else:
        assert [(int(big), wind) for big, wind in matrix.tolist()] == rows


def test_ids_are_one_for_each_row():
    assert ids_of_rows("r", [1]) == ["r"] and ids_of_rows("r", [1, 2]) == ["r/0", "r/1"]
    with pytest.raises(ValueError, match="2 ids for 1 rows"):
        ids_of_rows("r", [1], ["a", "b"])
