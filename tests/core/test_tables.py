"""Tables of any library: one Arrow table, one pandas frame, and one hash of their content."""

import datetime as dt
import doctest
import importlib
from decimal import Decimal

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dagster_mlops.core.table_hash import content_hash
from dagster_mlops.core.tables import as_frame, as_table, sql_name, sql_text
from dagster_mlops.errors import EvaluationError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
FLOATS = st.floats(allow_nan=False, allow_infinity=True, width=64)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
TIMES = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC))
KINDS = [
    (pa.int64(), INTEGERS),
    (pa.float64(), FLOATS),
    (pa.string(), TEXT),
    (pa.binary(), st.binary(max_size=4)),
    (pa.bool_(), st.booleans()),
    (pa.timestamp("us", "UTC"), TIMES),
    (pa.date32(), st.dates(dt.date(1900, 1, 1), dt.date(2200, 1, 1))),
    (pa.list_(pa.int64()), st.lists(INTEGERS | st.none(), max_size=3)),
    (pa.list_(pa.float64()), st.lists(FLOATS | st.none(), max_size=3)),
    (pa.list_(pa.list_(pa.string())), st.lists(st.lists(TEXT, max_size=2), max_size=2)),
    (pa.struct([("x", pa.float64()), ("y", pa.string())]), st.fixed_dictionaries({"x": FLOATS, "y": TEXT | st.none()})),
]


@st.composite
def tables(draw: st.DrawFn, *, rows: int = 6) -> pa.Table:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
    count = draw(st.integers(0, rows))
    columns = [
        pa.array(draw(st.lists(st.none() | values, min_size=count, max_size=count)), type) for type, values in kinds
    ]
    return pa.table(columns, names=[f"c{i}" for i in range(len(columns))])


def hashed(table: object) -> str:
    return content_hash(table, tool="feast")


@settings(max_examples=200, deadline=None)
@given(tables(), st.data())
def test_the_same_content_has_the_same_hash_in_every_library_and_however_it_is_cut(table, data):
    cut = data.draw(st.integers(0, len(table)))
    pieces = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    same = [
        pl.from_arrow(table),
        table.to_pandas(types_mapper=pd.ArrowDtype),
        pieces,
        pieces.to_reader(max_chunksize=2),
        pq.read_table(pa.BufferReader(buffer.getvalue())),
        duckdb.from_arrow(table),
        ds.dataset(table),
    ]
    assert {hashed(other) for other in same} == {hashed(table)}


@settings(max_examples=200, deadline=None)
@given(tables(), st.data())
def test_other_rows_another_order_and_other_names_have_another_hash(table, data):
    order = data.draw(st.permutations(range(len(table))))
    reordered = table.take(pa.array(order, pa.int64()))
    assert (hashed(reordered) == hashed(table)) == (reordered.to_pylist() == table.to_pylist())
    assume(len(table))
    shorter = table.slice(1)
    renamed = table.rename_columns([f"d{i}" for i in range(table.num_columns)])
    assert hashed(shorter) != hashed(table) != hashed(renamed)


def test_the_order_of_columns_and_the_widths_of_numbers_are_content():
    table = pa.table({"a": [1, 2], "b": [3, 4]})
    assert hashed(table) != hashed(table.select(["b", "a"]))
    assert hashed(table) != hashed(table.cast(pa.schema({"a": pa.int32(), "b": pa.int64()})))


def test_a_value_moved_between_two_lists_or_two_rows_changes_the_hash():
    assert hashed(pa.table({"a": [[1, 2], [3]]})) != hashed(pa.table({"a": [[1], [2, 3]]}))
    assert hashed(pa.table({"a": ["ab", "c"]})) != hashed(pa.table({"a": ["a", "bc"]}))
    assert hashed(pa.table({"a": [1, None]})) != hashed(pa.table({"a": [None, 1]}))


def test_nan_is_missing_at_every_depth():
    nan = float("nan")
    assert hashed(pl.DataFrame({"a": [1.0, nan]})) == hashed(pl.DataFrame({"a": [1.0, None]}))
    assert hashed(pd.DataFrame({"a": [1.0, nan]})) == hashed(pl.DataFrame({"a": [1.0, nan]}))
    assert hashed(pa.table({"a": [[1.0, nan]]})) == hashed(pa.table({"a": [[1.0, None]]}))
    assert hashed(pa.table({"a": [{"x": 1.0}, {"x": nan}]})) == hashed(pa.table({"a": [{"x": 1.0}, {"x": None}]}))


def test_a_timestamp_is_its_instant_whatever_its_zone_and_unit():
    utc = pd.Series(pd.to_datetime(["2013-06-01T12:00:00", None], utc=True))
    same = [
        utc,
        utc.dt.tz_convert("Europe/Berlin"),
        utc.dt.tz_localize(None),
        utc.dt.as_unit("s"),
        utc.dt.as_unit("ms"),
    ]
    assert len({hashed(pd.DataFrame({"at": values})) for values in same}) == 1


def test_nanoseconds_count_where_there_are_any():
    """pandas' default unit: a timestamp finer than a microsecond was an ArrowInvalid error."""
    fine = pd.DataFrame({"at": pd.to_datetime([1_000, 2_001, None])})
    assert hashed(fine) not in {
        hashed(pd.DataFrame({"at": pd.to_datetime([1_000, 2_000, None])})),
        hashed(pd.DataFrame({"at": pd.to_datetime([1_001, 2_000, None])})),
        hashed(pd.DataFrame({"at": pd.to_datetime([1_000, 2_002, None])})),
    }
    assert hashed(fine) == hashed(pa.Table.from_pandas(fine).to_reader(max_chunksize=1))
    nested = pa.array([[1_001], [2_000]], pa.list_(pa.timestamp("ns")))
    assert hashed(pa.table({"at": nested})) != hashed(
        pa.table({"at": nested.cast(pa.list_(pa.timestamp("us")), safe=False)})
    )


@pytest.mark.parametrize(
    ("value", "types"),
    [
        (dt.timedelta(hours=1), [pa.duration("s"), pa.duration("ms"), pa.duration("us"), pa.duration("ns")]),
        (dt.time(1, 2, 3), [pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")]),
        ("JFK", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]),
        ([1], [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 1), pa.list_view(pa.int64())]),
    ],
)
def test_a_unit_or_width_that_readers_change_does_not_count(value, types):
    """A duration or time of day had another hash in each unit; a list view had none."""
    assert len({hashed(pa.table({"a": pa.array([value, None], type)})) for type in types}) == 1


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"a": pd.period_range("2020", periods=2, freq="M")}),
        pd.DataFrame({"a": pd.interval_range(0, 2)}),
        pa.table({"a": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64()))}),
        pd.DataFrame({"a": [1, "x", None, [2]]}),
    ],
    ids=["period", "interval", "map", "mixed types"],
)
def test_what_arrow_has_no_plain_type_for_is_hashed(table):
    reversed_rows = table.iloc[::-1] if isinstance(table, pd.DataFrame) else table.take([1, 0])
    assert hashed(table) == hashed(table) != hashed(reversed_rows)


def test_hashes_on_record_stay_comparable():
    """The hash that earlier releases wrote on the record of a training set with this content."""
    table = pa.table({
        "id": pa.array([1, 2, None], pa.int64()),
        "wind": pa.array([1.5, float("nan"), -0.0]),
        "origin": pa.array(["JFK", None, "LGA"]).dictionary_encode(),
        "late": [True, False, None],
        "at": pa.array([dt.datetime(2013, 1, 1, tzinfo=dt.UTC), None, None], pa.timestamp("us", "UTC")),
        "day": [dt.date(2013, 1, 1), None, None],
        "codes": [[1, None], [], None],
        "fare": [Decimal("1.20"), None, None],
        "part": [{"x": 1.0}, None, {"x": None}],
        "nothing": pa.nulls(3),
    })  # fmt: skip
    assert hashed(table) == "4bb2828b8bf52b309edbb9e1f483d5f202728e0f8eb0fccfc51371213aee777c"


@settings(max_examples=50, deadline=None)
@given(tables())
def test_every_library_and_partitions_become_one_table(table):
    lazy = pl.DataFrame(table).lazy()
    for other in (lazy, lazy.collect(), duckdb.from_arrow(table), table.to_reader(), ds.dataset(table)):
        assert hashed(as_table(other, tool="feast")) == hashed(table)
    parts = {"2013-02": table.slice(1), "2013-01": table.slice(0, 1)}
    assert as_table(parts, tool="feast").equals(table)
    assert len(as_frame(parts, tool="feast")) == len(table)


def test_a_pandas_frame_is_returned_as_it_is_and_its_index_is_no_column_of_the_table():
    frame = pd.DataFrame({"a": [1]}, index=pd.Index([7], name="id"))
    assert as_frame(frame, tool="mlflow") is frame
    assert as_table(frame, tool="mlflow").column_names == ["a"]
    assert hashed(frame) == hashed(frame.reset_index(drop=True))


@pytest.mark.parametrize("value", ["text", [1], None, {}, {"2013": 1}, pd.Series([1]), {"a": [1]}])
def test_what_is_not_a_table_is_an_error_of_the_tool(value):
    for convert in (as_table, as_frame):
        with pytest.raises(EvaluationError, match="is not a table"):
            convert(value, tool="mlflow", error=EvaluationError)
    with pytest.raises(EvaluationError, match="column of mixed types"):
        as_table(pd.DataFrame({"a": [1, "x"]}), tool="mlflow", error=EvaluationError)


@settings(max_examples=50, deadline=None)
@given(TEXT.filter(bool))
def test_sql_reads_back_the_name_and_the_text_that_were_written(text):
    relation = duckdb.connect().execute(f"SELECT {sql_text(text)} AS {sql_name(text)}")
    assert ([name for name, *_ in relation.description or ()], relation.fetchall()) == ([text], [(text,)])


@pytest.mark.parametrize("module", ["tables", "table_hash", "timestamps"])
def test_the_examples_in_the_docstrings_run(module):
    outcome = doctest.testmod(importlib.import_module(f"dagster_mlops.core.{module}"))
    assert outcome.attempted and not outcome.failed
