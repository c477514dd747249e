"""Odd frames: each column has a verdict, and nothing crashes, whatever stands in it."""

import datetime
import decimal
import itertools
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dagster_mlops.monitoring.comparison.compare import compare
from dagster_mlops.monitoring.comparison.measure import Comparison, Score
from dagster_mlops.monitoring.normalise import normalise, to_pandas
from dagster_mlops.monitoring.plots import distributions
from dagster_mlops.monitoring.quality.examine import examine
from dagster_mlops.monitoring.quality.expectations import Expectations
from dagster_mlops.monitoring.quality.rules import Rules

ROWS = 120
N = range(ROWS)
DAY = pd.Timestamp("2013-01-01")
GOOD = pd.Series(np.random.default_rng(0).normal(size=ROWS))

# By name, a column of ROWS values.
COLUMNS: dict[str, object] = {
    "good": GOOD,
    "constant": [1.0] * ROWS,
    "zero": [0] * ROWS,
    "nan": [np.nan] * ROWS,
    "none": [None] * ROWS,
    "one value": [1.0] + [None] * (ROWS - 1),
    "infinite": [np.inf, -np.inf] * (ROWS // 2),
    "some infinite": [np.inf if n % 3 == 0 else float(n) for n in N],
    "largest": [1.7e308, -1.7e308] * (ROWS // 2),
    "smallest": [5e-324] * ROWS,
    "subnormal": [5e-324 * n for n in N],
    "negative zero": [-0.0] * ROWS,
    "2**53": [2**53 + n for n in N],
    "19 digits": [1234567890123456789 + n for n in N],
    "largest integer": [2**63 - 1] * ROWS,
    "unsigned": np.arange(ROWS, dtype="uint64") + np.uint64(2**63),
    "30 digits": pd.Series([10**30 + n for n in N], dtype=object),
    "400 digits": pd.Series([10**400] * ROWS, dtype=object),
    "nullable integers": pd.array([n if n % 2 else None for n in N], dtype="Int64"),
    "nullable floats": pd.array([n / 2 if n % 2 else None for n in N], dtype="Float64"),
    "nullable truth": pd.array([True, None, False] * (ROWS // 3), dtype="boolean"),
    "float16": np.linspace(0, 1, ROWS).astype("float16"),
    "int8": np.arange(ROWS).astype("int8"),
    "complex": np.arange(ROWS) * 1j,
    "truth": [True, False] * (ROWS // 2),
    "truth and words": [True, "no"] * (ROWS // 2),
    "truth and numbers": [True, 2] * (ROWS // 2),
    "numbers as text": [str(n) for n in N],
    "numbers and text": [n if n % 5 else "n/a" for n in N],
    "text and numbers": ["n/a" if n % 5 else n for n in N],
    "numbers and dates": [n if n % 2 else DAY for n in N],
    "decimals": [decimal.Decimal(n) / 7 for n in N],
    "signalling": [decimal.Decimal("sNaN") if n == 1 else decimal.Decimal(n) for n in N],
    "fractions of numpy": pd.Series([np.float32(n) / 3 for n in N], dtype=object),
    "words": [f"w{n % 4}" for n in N],
    "identifiers": [f"id{n}" for n in N],
    "empty words": [""] * ROWS,
    "spaces": [" " * (n % 4) for n in N],
    "long words": [f"{'x' * 100_000}{n % 3}" for n in N],
    "markup": ["</script><img src=x onerror=alert(1)>", "<b>"] * (ROWS // 2),
    "emoji": ["👩‍🚀", "\u202ertl", "\x00"] * (ROWS // 3),
    "surrogates": ["\ud800", "a"] * (ROWS // 2),
    "bytes": [b"\xff" + bytes([n % 3]) for n in N],
    "lists": [[n % 3] for n in N],
    "mappings": [{"a": n % 2} for n in N],
    "sets": [{n % 2} for n in N],
    "arrays": pd.Series([np.arange(3)] * ROWS, dtype=object),
    "frames": pd.Series([pd.DataFrame({"a": [1]})] * ROWS, dtype=object),
    "objects": [object() for _ in N],
    "uuids": [uuid.UUID(int=n) for n in N],
    "types": [int, str] * (ROWS // 2),
    "pandas NA": pd.Series([pd.NA, 1] * (ROWS // 2), dtype=object),
    "NaT": [pd.NaT] * ROWS,
    "dates": pd.date_range(DAY, periods=ROWS),
    "dates with zone": pd.date_range(DAY, periods=ROWS, tz="America/New_York"),
    "dates of Python": [datetime.date(2013, 1, 1 + n % 28) for n in N],
    "times of day": [datetime.time(n % 24) for n in N],
    "year 1": [datetime.date(1, 1, 1)] * ROWS,
    "year 9999": [datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)] * ROWS,
    "dates in seconds": pd.date_range(DAY, periods=ROWS).astype("datetime64[s]"),
    "periods": pd.period_range(DAY, periods=ROWS, freq="D"),
    "intervals": pd.interval_range(0, ROWS),
    "durations": pd.to_timedelta(list(N), unit="h"),
    "categorical": pd.Categorical([f"w{n % 3}" for n in N], categories=["w0", "w1", "w2", "never"]),
    "ordered numbers": pd.Categorical([n % 3 for n in N], ordered=True),
    "categorical, empty": pd.Categorical([None] * ROWS, categories=["a"]),
    "sparse": pd.arrays.SparseArray([0.0] * (ROWS - 1) + [1.0]),
    "arrow strings": pd.array([f"w{n % 3}" for n in N], dtype="string[pyarrow]"),
    "arrow decimals": pd.array([decimal.Decimal(n) for n in N], dtype=pd.ArrowDtype(pa.decimal128(10, 2))),
    "arrow lists": pd.array([[n] for n in N], dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
    "arrow times": pd.array([datetime.time(n % 24) for n in N], dtype=pd.ArrowDtype(pa.time64("us"))),
    "arrow dictionary": pa.array([f"w{n % 3}" for n in N]).dictionary_encode().to_pandas(),
}


class Psi:
    """A measure as small as can be: it says of each column that it is stable."""

    max_rows, seed = 1000, 0

    def scores(self, reference, current, options, *, name):
        for frame in (reference, current):
            assert all(frame.data[c].dtype == float for c, kind in frame.kinds.items() if kind == "number")
        return Comparison(
            [Score(c, "stable", drifted=False, method="psi", score=0.0, threshold=0.2) for c in reference.kinds]
        )


def frame(column: object) -> pd.DataFrame:
    values = column if isinstance(column, pd.Series | pd.Categorical) else pd.Series(column)  # type: ignore[call-overload]
    return pd.DataFrame({"x": values, "steady": GOOD})


def test_there_are_as_many_as_was_promised():
    assert len(COLUMNS) >= 60


@pytest.mark.parametrize("name", COLUMNS)
def test_an_odd_column_has_a_verdict_from_every_check(name):
    odd, normal = frame(COLUMNS[name]), frame(GOOD)
    for current, reference in itertools.permutations([odd, normal]):
        result = compare(normalise(current), normalise(reference), Psi())
        assert {c.column for c in result.columns} == {"x", "steady"}
        assert not next(c for c in result.columns if c.column == "steady").drifted
    same = compare(normalise(odd), normalise(odd), Psi())
    assert not same.broken and not same.drifted
    rules = Rules(no_duplicates_of=["x"], ranges={"steady": (-9, 9)})
    quality = examine(odd, rules, Expectations.learn(normalise(odd)))
    assert {f.column for f in quality.findings} == {"x", "steady"}
    expected = Expectations.learn(normalise(normal))
    assert {f.column for f in examine(odd, None, expected).findings} == {"x", "steady"}


@pytest.mark.parametrize("name", ["largest", "subnormal", "surrogates", "emoji", "long words", "year 9999", "objects"])
def test_a_picture_of_an_odd_column_costs_nothing(name):
    data = normalise(frame(COLUMNS[name])).data
    assert distributions("x/plot", {"current": data}, ["x", "steady"])


@pytest.mark.parametrize(
    "odd",
    [
        pd.DataFrame(),
        pd.DataFrame({"x": []}),
        pd.DataFrame({0: GOOD, "0": GOOD}),
        pd.DataFrame(np.ones((ROWS, 2)), columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])),
        pd.DataFrame({None: GOOD, ("a", "b"): GOOD, 1.5: GOOD}),
        frame(GOOD).set_index(pd.Index([7] * ROWS)),
        frame(GOOD).set_index(pd.MultiIndex.from_tuples([(n, n) for n in N])),
        pa.table({"x": pa.nulls(ROWS), "y": pa.array(N, pa.int64())}),
        {"2013-01": frame(GOOD), "2013-02": frame(GOOD)},
        pd.DataFrame(np.ones((ROWS, 300))),
    ],
    ids=["nothing", "no rows", "0 and text", "levels", "odd names", "index", "index of two", "nulls", "parts", "wide"],
)
def test_an_odd_frame_has_a_verdict_for_each_column(odd):
    normal = normalise(odd)
    assert len(normal.kinds) == len(to_pandas(odd).columns)
    result = compare(normal, normal, Psi())
    assert {c.column for c in result.columns} == set(normal.kinds) and not result.drifted
    assert {f.column for f in examine(odd).findings} == set(normal.kinds)
