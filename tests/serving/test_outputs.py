"""What models return is answered as it is, or not at all."""

import math
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dagster_mlops.serving.runtime import OutputError, records_of
from dagster_mlops.serving.runtime.outputs import outputs_by_row

AT = datetime(2026, 3, 1, 12, 30)


@pytest.mark.parametrize(
    ("raw", "values"),
    [
        (np.array([0.5, math.nan]), [0.5, None]),
        (np.array([[0.5], [1.5]]), [0.5, 1.5]),
        (np.array([[1], [2**62]]), [1, 2**62]),
        (np.array([[0.1, 0.9], [0.2, math.inf]]), [[0.1, 0.9], [0.2, None]]),
        (np.arange(8).reshape(2, 2, 2), [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.array([AT, None], dtype="datetime64[ns]"), ["2026-03-01T12:30:00.000000000", None]),
        (pd.Series([1, 2], dtype="Int64"), [1, 2]),
        (pd.Series([True, None], dtype="boolean"), [True, None]),
        (pd.DataFrame({"only": [1.5, None]}), [1.5, None]),
        (pd.DataFrame({0: [1, 2], "b": ["x", None]}), [{"0": 1, "b": "x"}, {"0": 2, "b": None}]),
        (
            pd.DataFrame({"at": [AT, pd.NaT], "n": [1, 2]}),
            [{"at": "2026-03-01T12:30:00", "n": 1}, {"at": None, "n": 2}],
        ),
        ([{"score": 0.5}, {"score": np.float32(0.25)}], [{"score": 0.5}, {"score": 0.25}]),
        ([1, "a"], [1, "a"]),
        ([b"\x00", None], ["AA==", None]),
        ({"low": np.array([1, 2]), "high": [3.0, 4.0]}, [{"low": 1, "high": 3.0}, {"low": 2, "high": 4.0}]),
        ((0.5, 1.5), [0.5, 1.5]),
    ],
)
def test_a_prediction_keeps_its_form(raw, values):
    found = outputs_by_row(raw, 2)
    assert found == values and [type(one) for one in found] == [type(one) for one in values]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (np.array([1.0, 2.0, 3.0]), "3 values for 2 rows"),
        (np.array(1.0), "a ndarray for 2 rows"),
        ("ab", "a str for 2 rows"),
        (None, "a NoneType for 2 rows"),
        ({"a": [1, 2], "b": [1]}, "1 values for 2 rows"),
        ([{1: 2}, {}], "keys that are not text"),
        ([Decimal("0.1"), 1], "a value is a Decimal"),
        ([object(), 1], "a value is a object"),
    ],
)
def test_what_is_not_one_value_for_each_row_is_refused(raw, reason):
    with pytest.raises(OutputError, match=reason):
        outputs_by_row(raw, 2)


def test_rows_of_a_frame_keep_their_types():
    frame: Any = pd.DataFrame({"n": [1, 2], "x": [0.5, math.nan], "at": [AT, pd.NaT]})
    assert records_of(frame) == [{"n": 1, "x": 0.5, "at": "2026-03-01T12:30:00"}, {"n": 2, "x": None, "at": None}]
