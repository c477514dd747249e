"""The learned values of two models are compared to the last one, and what cannot be compared is said."""

import array
import collections
import ctypes
import datetime
import decimal
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pandas as pd
import polars
import pytest

from dagster_mlops.mlflow.training import _answers_script as answers
from dagster_mlops.mlflow.training import _rerun_script as rerun
from dagster_mlops.mlflow.training import _values_script as values


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def of_class(value: Any) -> Any:
    class Local:  # stored by its content, as it cannot be imported
        weights = value

    return Local()


def function(value: Any) -> Any:
    return lambda rows: rows * value


def frame_of(value: float) -> pd.DataFrame:
    """Two columns of one name."""
    return pd.DataFrame({"a": [value], "b": [2.0]}).set_axis(["p", "p"], axis=1)


class Blend:
    """A class of a user, with a method of the same name as that of a library's models."""

    def __init__(self, cutoff: float) -> None:
        self.weights, self.cutoff = [1.0], cutoff

    def get_weights(self) -> list[float]:
        return self.weights


class Identity: ...


class Log: ...


def nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = {"left": value}
    return value


def compared(left: Any, right: Any) -> dict[str, Any]:
    return answers._values_difference(dict(values.learned(left)), dict(values.learned(right)), 1e-9)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({1}, {2}),
        ({"a"}, {"b"}),
        (Slotted(1), Slotted(2)),
        (Slotted({"deep": [Slotted(1.0)]}), Slotted({"deep": [Slotted(2.0)]})),
        (datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)),
        (np.array(["2026-01-01"], dtype="datetime64[D]"), np.array(["2026-01-02"], dtype="datetime64[D]")),
        (pd.Timedelta("1s"), pd.Timedelta("2s")),
        (["in time", "late"], ["late", "in time"]),
        (["0.1234567890123456"], ["0.6543210987654321"]),
        (np.array(["a", "b"]), np.array(["a", "c"])),
        (nested(1, 60), nested(2, 60)),
        (of_class(1.0), of_class(2.0)),
        (function(1.0), function(2.0)),
        (decimal.Decimal(1), decimal.Decimal(2)),
        (1 + 1j, 1 + 2j),
        (2**70, 2**70 + 1),
        (collections.deque([1]), collections.deque([2])),
        (collections.deque([1], maxlen=3), collections.deque([1], maxlen=4)),
        (array.array("d", [1.0]), array.array("d", [2.0])),
        (pd.Series([1.0], index=["a"]), pd.Series([1.0], index=["b"])),
        (pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]})),
        ({"weights_by_time": np.ones(2)}, {"weights_by_time": np.zeros(2)}),
        ({"random_effects": 1.0}, {"random_effects": 2.0}),
        ([1e12, 0.1], [1e12, 0.2]),
        ([1.0, None], [1.0, 2.0]),
        ([1.7e18, 1.6e18, 0.5], [1.7e18, 1.6e18, 0.6]),
        (Blend(1.0), Blend(2.0)),
        ({"link": Identity()}, {"link": Log()}),
        ({"link": Identity}, {"link": Log}),
        ({"link": nested}, {"link": function}),
        ({"link": np.exp}, {"link": np.expm1}),
        ({"link": len}, {"link": sum}),
        ({"train_times": np.ones(3)}, {"train_times": np.zeros(3)}),
        ({"pid": np.ones(3)}, {"pid": np.zeros(3)}),
    ],
)
def test_a_value_of_any_kind_that_differs_is_found(left, right):
    assert compared(left, right)["different"] and not compared(left, left)["different"], compared(left, right)
    assert not compared(left, left)["opaque"]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (b"native", b"other"),
        (nested(1, 1500), nested(1, 1500)),
        ({"handle": ctypes.pointer(ctypes.c_int(1))}, {"handle": ctypes.pointer(ctypes.c_int(2))}),
        ({"time": 0.1}, {"time": 0.2}),
        ({"folder": "/tmp/a"}, {"folder": "/tmp/b"}),
        ({"until": datetime.datetime(2026, 1, 1, 12, 30)}, {"until": datetime.datetime(2026, 1, 1, 12, 31)}),
        ({"name": "model-1a2b3c4d5e6f"}, {"name": "model-6f5e4d3c2b1a"}),
    ],
)
def test_a_value_that_nobody_can_judge_is_neither_the_same_nor_different(left, right):
    found = compared(left, right)
    assert found["opaque"] and not found["different"], found


def test_weights_are_compared_by_place_and_not_by_a_name_that_counts_the_layers_of_a_process():
    def network(name: str, weight: float) -> Any:
        weights = [np.array([weight])]
        return SimpleNamespace(get_weights=lambda: weights, state_dict=lambda: {name: weights[0]})

    assert not compared(network("dense/kernel", 1.0), network("dense_7/kernel", 1.0))["different"]
    assert compared(network("dense/kernel", 1.0), network("dense/kernel", 2.0))["different"]


def test_the_order_in_which_mlflow_lists_trusted_types_is_no_difference(tmp_path):
    for name, types in (("a", ["x.A", "x.B"]), ("b", ["x.B", "x.A"]), ("c", ["x.A", "x.C"])):
        (tmp_path / name).mkdir()
        described = {"mlflow_version": "3.17.2", "flavors": {"lightgbm": {"skops_trusted_types": types}}}
        (tmp_path / name / "MLmodel").write_text(json.dumps(described))
    assert rerun._changed_parts(tmp_path / "a", tmp_path / "b")["settings"] == []
    assert rerun._changed_parts(tmp_path / "a", tmp_path / "c")["settings"]


@pytest.mark.parametrize("name", ["fitted_at", "mean_fit_time", "rng", "random_state", "created_on", "trained_at_"])
def test_times_and_generators_need_not_be_repeated(name):
    left, right = (SimpleNamespace(weight=1.0, **{name: value}) for value in (1.0, 2.0))
    assert compared(left, right) == {"compared": 1, "different": [], "opaque": []}


def test_the_class_of_an_object_is_no_evidence_of_what_it_has_learned():
    found = compared({"link": Log(), "function": nested}, {"link": Log(), "function": nested})
    assert found == {"compared": 0, "different": [], "opaque": []}


def test_more_values_than_are_compared_leave_it_open(monkeypatch):
    monkeypatch.setattr(values, "_MOST_VALUES", 3)
    many = {str(position): float(position) for position in range(4)}
    assert compared(many, many)["opaque"]


def test_the_files_that_a_model_brings_along_are_compared_by_their_content(tmp_path):
    frame = pd.DataFrame({"a": [1.0]})
    writers = {
        "a.json": lambda file: file.write_text(json.dumps({"a": 1.0})),
        "a.csv": frame.to_csv,
        "a.parquet": frame.to_parquet,
        "a.npy": lambda file: np.save(file, np.ones(1)),
        "a.npz": lambda file: np.savez(file, a=np.ones(1)),
        "a.pkl": frame.to_pickle,
        "a.joblib": lambda file: joblib.dump({"a": 1.0}, file),
        "a.txt": lambda file: file.write_text("a"),
    }
    for name, write in writers.items():
        write(tmp_path / name)
        found = dict(values.learned(values.stored_content(tmp_path / name)))
        assert found and not any(isinstance(value, bytes) for value in found.values()), name
    (tmp_path / "b.json").write_text("{")
    assert values.stored_content(tmp_path / "b.json") == b"{"
    assert values.stored_content(Path(__file__)) == Path(__file__).read_bytes()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (frame_of(1.0), frame_of(3.0)),
        (pd.DataFrame({"a": [1.0], "b": [2.0]}), pd.DataFrame({"b": [1.0], "a": [2.0]})),
        (polars.DataFrame({"p": range(999)}), polars.DataFrame({"p": [*range(500), 0, *range(501, 999)]})),
        (iter([1.0]), iter([2.0])),
        ([Slotted(1.0)], [Slotted(2.0)]),
        ([1e15, *[1.0] * 20], [1e15, *[2.0] * 20]),
        ([1e13, 1.0, 1.0, 1.0], [1e13, 2.0, 2.0, 2.0]),
        ([*[1e13] * 20, *[1.0] * 20], [*[1e13] * 20, *[2.0] * 20]),
    ],
)
def test_answers_of_any_form_are_compared(left, right):
    found = answers._difference(left, right)
    assert found["largest_difference"] is None or found["largest_difference"] > 1e-4 or found["others"]


def test_noise_around_zero_is_no_difference():
    left, right = np.ones(100), np.ones(100)
    left[:50], right[:50] = 1e-17, -3e-17
    assert answers._difference(left, right)["largest_difference"] < 1e-15


def test_labels_are_few_answers_and_probabilities_many():
    rows = np.linspace(0, 1, 100)
    assert answers._distinct({"label": (rows > 0.5).astype(int)}) == 2
    assert answers._distinct({"label": np.array(["a", "b"] * 50), "p": rows}) == 100
