"""Windows as counts: merged in any order, counted whatever the table holds, exact for 64-bit ids."""

import datetime
import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_mlops.errors import MonitoringError
from dagster_mlops.monitoring.windows import Counts, Profile, Window, cut

NUMBERS = st.one_of(st.floats(width=64), st.just(1e308), st.just(-1e308), st.integers(-5, 5).map(float))
WORDS = st.sampled_from(["EWR", "JFK", "LGA", "new", "", "x" * 400, None])
ROWS = st.lists(st.tuples(NUMBERS, WORDS, st.integers(-(2**63), 2**63 - 1)), max_size=30)


def frame(rows) -> pd.DataFrame:
    columns = list(zip(*rows, strict=True)) if rows else [(), (), ()]
    times = pd.date_range("2013-01-01", periods=len(rows), freq="37min", tz="UTC")
    return pd.DataFrame(
        {
            "wind": pd.Series(columns[0], dtype=float),
            "origin": pd.Series(columns[1], dtype=object),
            "id": pd.Series(columns[2], dtype="int64"),
            "time": times,
        }
    )


REFERENCE = pd.DataFrame(
    {
        "wind": np.random.default_rng(1).normal(10, 4, 500),
        "origin": ["EWR", "JFK", "LGA", "JFK"] * 125,
        "id": np.random.default_rng(2).integers(10**18, 2 * 10**18, 500),
    }
)
PROFILE = Profile.learn(REFERENCE)


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS, ROWS)
def test_windows_merge_in_any_order_to_what_counting_once_gives(a, b, c):
    x, y, z = (PROFILE.count(frame(rows), "time") for rows in (a, b, c))
    assert x + y == y + x
    assert (x + y) + z == x + (y + z)
    assert x + PROFILE.empty() == x
    whole = pd.concat([frame(a), frame(b), frame(c)], ignore_index=True)
    assert PROFILE.count(whole, "time") == x + y + z
    assert (x + y + z).rows == len(whole) and int(PROFILE.count(whole).bins[: PROFILE.columns[0].size].sum()) == len(
        whole
    )


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_json_keeps_everything(rows):
    counts = PROFILE.count(frame(rows), "time")
    assert Counts.from_dict(json.loads(json.dumps(counts.to_dict()))) == counts
    day = datetime.datetime(2013, 1, 1, tzinfo=datetime.UTC)
    window = Window(day, day + datetime.timedelta(hours=1), counts)
    assert Window.from_dict(json.loads(json.dumps(window.to_dict()))) == window
    learned = Profile.learn(frame(rows))
    again = Profile.from_dict(json.loads(json.dumps(learned.to_dict())))
    assert again == learned and again.count(frame(rows)) == learned.count(frame(rows))


def test_what_a_later_version_wrote_is_refused():
    with pytest.raises(MonitoringError, match="version 2"):
        Profile.from_dict({**PROFILE.to_dict(), "version": 2})
    with pytest.raises(MonitoringError, match="Count both windows with one profile"):
        PROFILE.count(REFERENCE) + Profile.learn(REFERENCE[["wind"]]).count(REFERENCE)


ODD = {
    "all NaN": [np.nan] * 8,
    "all None": [None] * 8,
    "infinite": [np.inf, -np.inf] * 4,
    "huge": [1e308, -1e308] * 4,
    "decimals": [Decimal("1.5"), Decimal("NaN"), Decimal("1e400"), None] * 2,
    "nested": [{"a": [1]}, [1, 2], (1,), {"b"}] * 2,
    "19 digits": [1234567890123456789, 1234567890123456788] * 4,
    "beyond 64 bits": [2**70, -(2**70)] * 4,
    "unsigned": np.array([2**64 - 1, 0] * 4, "uint64"),
    "mixed": [1, "one", 2.5, None, True, b"\xff", 1j, datetime.date(2013, 1, 1)],
    "bools": [True, False] * 4,
    "dates": pd.to_datetime(["1970-01-01", "2013-01-01"] * 4),
    "zoned dates": pd.to_datetime(["1970-01-01", "2262-01-01"] * 4, utc=True),
    "periods": pd.period_range("2013-01", periods=8, freq="M"),
    "durations": pd.to_timedelta(range(8), unit="h"),
    "megabytes": ["x" * 1_000_000, "y" * 1_000_000] * 4,
    "surrogates": ["\ud800", "ok"] * 4,
    "bytes": [b"\xff\x00", b"ok"] * 4,
    "complex": [1j, 2j] * 4,
    "categorical": pd.Categorical(["a", None] * 4),
    "nullable": pd.array([1, None] * 4, dtype="Int64"),
    "arrow text": pd.array(["a", None] * 4, dtype="string[pyarrow]"),
    "empty text": [""] * 8,
    "objects": [object()] * 8,
    "float16": np.array([1.5, np.nan] * 4, "float16"),
    "subnormal": [5e-324] * 8,
}


@pytest.mark.parametrize("name", ODD)
def test_every_value_of_an_odd_column_is_counted(name):
    odd = pd.DataFrame({"x": ODD[name]})
    plain = pd.DataFrame({"x": np.arange(8.0)})
    words = pd.DataFrame({"x": list("abcdefgh")})
    for reference, window in ((odd, odd), (plain, odd), (words, odd), (odd, plain), (odd, words)):
        profile = Profile.from_dict(json.loads(json.dumps(Profile.learn(reference).to_dict())))
        counts = profile.count(window)
        assert sum(count for _, count in profile.histogram(counts, "x")) == counts.rows == 8
        assert sum(count for _, count in profile.histogram(profile.count(window.iloc[:0]), "x")) == 0


def histogram(reference, window, column="x"):
    profile = Profile.learn(pd.DataFrame({column: reference}))
    return dict(profile.histogram(profile.count(pd.DataFrame({column: window})), column))


def test_what_is_wrong_with_values_has_bins_of_its_own():
    numbers = np.linspace(0, 10, 200)
    assert histogram(numbers, [np.nan, np.inf, -1e308, 1e308, 5.0])["malformed"] == 1
    assert histogram(numbers, [np.nan, np.inf, -1e308, 1e308, 5.0])["far above"] == 1
    assert histogram(numbers, ["1", None, 2.0])["malformed"] == 1
    assert histogram([True, False] * 50, [1, 0, 1, 0]) == histogram([True, False] * 50, [True, False, True, False])
    assert histogram(["a", "b"] * 50, ["a", "c", None])["unseen"] == 1
    days = pd.date_range("2013-01-01", periods=60)
    assert histogram(days, pd.to_datetime(["1970-01-01", "2013-03-05"]))["far below"] == 1
    assert histogram(days, ["2013-03-05", "not a date"])["malformed"] == 1


def test_ids_that_differ_beyond_float64_are_told_apart():
    ids = [2**60 + i for i in range(8)]
    assert len({float(i) for i in ids}) == 1
    assert list(histogram(ids * 20, ids).values()).count(1) == 8


def test_ids_that_collapse_fill_one_bucket():
    ordered = np.arange(1000)
    assert max(histogram(ordered, ordered[:160]).values()) == 10
    assert max(histogram(ordered, [7] * 160).values()) == 160
    names = [f"N{i:05d}AA" for i in range(3000)]
    assert max(histogram(names, names).values()) < 600
    assert max(histogram(names, ["N00001AA"] * 3000).values()) == 3000


def test_one_outlier_stretches_no_bin():
    """https://github.com/evidentlyai/evidently/issues/1400"""
    numbers = np.append(np.random.default_rng(0).normal(size=999), 1e9)
    filled = [count for count in histogram(numbers, numbers).values() if count]
    assert max(filled) < 150 and sum(filled) == 1000


def test_both_columns_of_one_name_are_counted():
    twice = pd.concat([pd.Series([1, 2], name="x"), pd.Series(["a", "b"], name="x")], axis=1)
    profile = Profile.learn(twice)
    assert [column.name for column in profile.columns] == ["x", "x #2", "values of x"]
    assert ("b", 1) in profile.histogram(profile.count(twice), "x #2")


def test_a_lost_column_is_missing_in_every_row():
    assert PROFILE.histogram(PROFILE.count(REFERENCE.drop(columns="wind")), "wind")[0] == ("missing", 500)


def test_any_table_is_counted_alike():
    expected = PROFILE.count(REFERENCE)
    arrow = pa.Table.from_pandas(REFERENCE)
    dictionary = arrow.set_column(1, "origin", arrow["origin"].dictionary_encode())
    assert PROFILE.count(arrow) == PROFILE.count(dictionary) == expected
    assert PROFILE.count(iter(arrow.to_batches(max_chunksize=7))) == expected
    assert (
        PROFILE.count(pa.RecordBatchReader.from_batches(arrow.schema, arrow.to_batches(max_chunksize=99))) == expected
    )
    assert PROFILE.count(arrow.slice(3, 100)) == PROFILE.count(REFERENCE[3:103])


@pytest.mark.parametrize("size", [{"rows": 10}, {"every": datetime.timedelta(hours=1)}], ids=["rows", "hours"])
def test_cut_windows_are_the_rows_counted_one_by_one(size):
    rng = np.random.default_rng(3)
    table = REFERENCE.assign(time=pd.Timestamp("2013-01-06 12:30", tz="UTC") + pd.to_timedelta(rng.random(500), "D"))
    history = cut(table, PROFILE, times="time", **size)
    windows = history.windows
    assert [w.start for w in windows] == sorted(w.start for w in windows)
    if "rows" in size:
        assert [window.counts.rows for window in windows] == [10] * 50
    for window in windows:
        inside = table[(table["time"] >= window.start) & (table["time"] < window.end)]
        assert PROFILE.count(inside, "time") == window.counts
    total = sum((w.counts for w in windows[1:]), windows[0].counts)
    assert total == PROFILE.count(table, "time")
    assert history.counts.sum(axis=0).tolist() == [*total.bins.tolist(), *total.sums.tolist()]
    [first, second] = history.weeks()  # Sunday night is in it
    assert len(history.of_weeks([first]).windows) + len(history.of_weeks([second]).windows) == len(windows)


def test_a_row_without_a_time_is_named():
    table = REFERENCE.assign(time=[None, *["2013-01-01"] * 499])
    with pytest.raises(MonitoringError, match="1 rows have no time in 'time'"):
        cut(table, PROFILE, times="time", rows=10)


def test_values_that_the_reference_has_not_are_new_and_those_beyond_it_out_of_range():
    """Winds in knots, shown in miles an hour: 36 of them, one in a single week; and a column that fills its range."""
    rng = np.random.default_rng(4)
    knots = np.concatenate([rng.integers(2, 30, 5200), [35, 40]])
    reference = pd.DataFrame({"wind": 1.15078 * knots, "share": rng.random(5202)})
    profile = Profile.learn(reference)
    again = pd.DataFrame({"wind": np.float32(1.15078 * np.array([3, 29, 40, 35, 34, 45])), "share": 0.123456789})
    labels = ("known", "known once", "new", "known once, beyond the range", "beyond the range")
    expected = {"wind": [2, 0, 0, 2, 2], "share": [6, 0, 0, 0, 0]}
    for name, counts in expected.items():
        histogram = dict(profile.histogram(profile.count(again), f"values of {name}"))
        assert [histogram[label] for label in labels] == counts
    celsius = dict(profile.histogram(profile.count((reference - 2) / 1.8), "values of wind"))
    assert celsius["new"] + celsius["beyond the range"] > 5000


def test_a_curved_relation_between_columns_is_learnt_and_shows_one_that_is_wrong():
    rng = np.random.default_rng(5)
    length, width = rng.normal(10, 3, 4000), rng.normal(6, 1, 4000)
    table = pd.DataFrame({"length": length, "width": width, "area": length * width + rng.normal(0, 0.3, 4000)})
    profile = Profile.from_dict(json.loads(json.dumps(Profile.learn(table).to_dict())))
    [name] = [column.name for column in profile.columns if column.name.startswith("area given ")]
    wrong = table.assign(width=table["width"].to_numpy()[::-1])
    usual, shuffled = (profile.histogram(profile.count(frame), name) for frame in (table, wrong))
    ends = [sum(histogram[i][1] for i in (2, 3, 4, -1)) for histogram in (usual, shuffled)]
    assert ends[0] < 40 and ends[1] > 3000
