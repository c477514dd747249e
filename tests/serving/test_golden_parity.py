"""Golden rows find a fault of the serving code, because what they must be answered is made without it."""

import asyncio
import importlib
import inspect
import json
import math
import textwrap
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving.golden.answers import expected_answers, largest_difference
from dagster_mlops.serving.golden.golden_set import score_golden, spread
from dagster_mlops.serving.runtime import outputs, schema
from dagster_mlops.serving.runtime.app import PredictionApp
from dagster_mlops.serving.runtime.limits import Limits
from tests.support import known_warnings
from tests.support.asgi import answer
from tests.support.http_servers import QuietHandler, QuietServer, serving

pytestmark = [*known_warnings.MLFLOW, *known_warnings.MLFLOW_HINTS, pytest.mark.filterwarnings("ignore:.*type hint")]

RECORD = SimpleNamespace(state_dir="")
STATE = cast("Any", SimpleNamespace(route="/predict", rows_field="rows", probe="p", record=RECORD))
AT = pd.Timestamp("2026-03-01T12:30:00")
ROWS = pd.DataFrame(
    {
        "big": [2**40 + n for n in range(40)],
        "wind": [math.nan if n % 7 == 0 else 0.1 * n for n in range(40)],
        "note": [None if n % 5 == 0 else f"note {n}" for n in range(40)],
        "at": [AT + pd.Timedelta(hours=n) for n in range(40)],
        "late": [n % 3 == 0 for n in range(40)],
        "gust": [0.2 * n for n in range(40)],
    }
)
HOURS = pd.DataFrame({"hour": range(40), "night": [n % 2 == 0 for n in range(40)]})


@pytest.fixture(scope="module")
def echo(tmp_path_factory) -> Any:
    """A model that answers with what it was asked, in every form of JSON."""
    place, signature = str(tmp_path_factory.mktemp("echo") / "model"), infer_signature(ROWS)
    model = importlib.import_module("tests.support.pyfuncs").Echo()  # its import warns
    mlflow.pyfunc.save_model(place, python_model=model, signature=signature, pip_requirements=[])
    return mlflow.pyfunc.load_model(place)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Any:
    place = str(tmp_path_factory.mktemp("classifier") / "model")
    model, signature = LogisticRegression().fit(HOURS, ROWS.late), infer_signature(HOURS)
    options: Any = {"pip_requirements": [], "serialization_format": "cloudpickle"}
    importlib.import_module("mlflow.sklearn").save_model(
        model, place, signature=signature, pyfunc_predict_fn="predict_proba", **options
    )
    return mlflow.pyfunc.load_model(place)


def compare(model: Any, rows: pd.DataFrame) -> float:
    """The golden comparison of a model with the app that serves it."""
    app = PredictionApp(Limits())
    app.serve(model, name="delay/1", deployment="d", log=None)

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status, content = asyncio.run(answer(app, body))
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    golden = score_golden(model, "delay/1", rows, 200)
    with serving(QuietServer(Handler)) as server, httpx.Client(base_url=server.url, trust_env=False) as client:
        return golden.compare(client, STATE, tolerance=1e-9)


def test_a_server_without_a_fault_agrees(echo, classifier):
    assert compare(echo, ROWS) == 0.0
    assert compare(classifier, HOURS) == 0.0


FINITE, COLUMN = "value if math.isfinite(value) else None", "np.array(sent, dtype=_DTYPES[kind])"
ROWS_OF, RETURN = "values = [msgspec.structs.astuple(row) for row in rows]", "    return values\n"
FAULTS: dict[str, tuple[Any, str, str]] = {
    "integers wrap in an answer": (
        outputs.plain, "        return value\n", "        return value % 2**31 if type(value) is int else value\n"
    ),
    "an object becomes text": (outputs.plain, "return {name: plain(item) for", "return str(value); {0 for"),
    "floats lose digits": (outputs.plain, FINITE, "float(np.float32(value)) if math.isfinite(value) else None"),
    "missing becomes 0": (outputs.plain, FINITE, "value if math.isfinite(value) else 0.0"),
    "a time becomes a day": (outputs.plain, "value.isoformat()", "value.isoformat()[:10]"),
    "predictions move by one row": (outputs.outputs_by_row, RETURN, "    return values[1:] + values[:1]\n"),
    "the last row is the first one": (outputs.outputs_by_row, RETURN, "    return values[:-1] + values[:1]\n"),
    "names of an answer are mixed up": (outputs.records_of, "zip(names, values", "zip(names[::-1], values"),
    "features are mixed up": (
        schema.Features.values, ROWS_OF, f"{ROWS_OF}; values = [(v[0], v[-1], *v[2:-1], v[1]) for v in values]"
    ),
    "integers wrap in a request": (schema.Features.frame, COLUMN, f"{COLUMN} % 2**31 if kind == 'long' else {COLUMN}"),
    "rows of a request turn round": (schema.Features.frame, "sent = [", "column = column[::-1]; sent = ["),
    "a missing text becomes one": (schema.Features.frame, "pd.Series(sent", "pd.Series(list(map(str, sent))"),
    "a missing number becomes 0": (schema.Features.frame, COLUMN, f"np.nan_to_num({COLUMN})"),
    "times are cut to days": (schema.Features.frame, 'dtype="datetime64[ns]")', 'dtype="datetime64[D]")'),
}  # fmt: skip


def break_code(monkeypatch: pytest.MonkeyPatch, function: Any, old: str, new: str) -> None:
    """Change a function wherever it was imported, as a fault in the library would."""
    source = textwrap.dedent(inspect.getsource(function))
    assert old in source
    names: dict[str, Any] = {}
    exec(source.replace(old, new), function.__globals__, names)
    monkeypatch.setattr(function, "__code__", names[function.__name__].__code__)


# Of each kind one; the first four cancelled out when both sides shared the code.
QUICK = (
    "floats lose digits",
    "an object becomes text",
    "missing becomes 0",
    "a time becomes a day",
    "features are mixed up",
)


@pytest.mark.parametrize(
    "fault", [fault if fault in QUICK else pytest.param(fault, marks=pytest.mark.thorough) for fault in FAULTS]
)
def test_a_fault_in_the_code_of_both_sides_is_found(echo, monkeypatch, fault):
    break_code(monkeypatch, *FAULTS[fault])
    with pytest.raises(DeploymentError, match=r"golden predictions differ|answers golden rows with"):
        compare(echo, ROWS)


def test_the_other_class_is_found(classifier, monkeypatch):
    break_code(monkeypatch, outputs.positive_class, "raw[:, 1]", "raw[:, 0]")
    with pytest.raises(DeploymentError, match="golden predictions differ"):
        compare(classifier, HOURS)


@given(length=st.integers(1, 5000), most=st.integers(1, 300))
def test_golden_rows_are_spread_over_the_whole_set(length, most):
    positions = spread(length, most)
    gaps = np.diff(positions)
    assert (
        len(positions) == min(length, most)
        and positions[0] == 0
        and (len(positions) == 1 or positions[-1] == length - 1)
    )
    assert not len(gaps) or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


class Returns:
    """A model that returns what it was made with."""

    metadata = SimpleNamespace(flavors={})

    def __init__(self, raw: Any) -> None:
        self.predict = lambda frame: raw


@pytest.mark.parametrize(
    "raw",
    [
        np.array([0.5, math.nan]), np.array([[0.5], [1.5]]), np.array([[0.1, 0.9], [0.2, math.inf]]),
        np.arange(8).reshape(2, 2, 2), np.array(["a", "b"]), np.array([AT, None], dtype="datetime64[ns]"),
        pd.Series([1, None], dtype="Int64"),
        pd.Series([True, None], dtype="boolean"), pd.Series(["a"] * 2, index=[7, 3]),
        pd.DataFrame({"only": [1.5, None]}), pd.DataFrame({0: [1, 2], "b": ["x", None], "at": [AT, pd.NaT]}),
        [{"score": 0.5, "parts": (1, 2)}, {"score": np.float32(0.25), "parts": [b"\x00" * 99, datetime.now(UTC)]}],
        {"low": np.array([[1], [2]]), "high": [3.0, 4.0]}, (0.5, 1.5), [np.array([1, 2]), None],
    ],
)  # fmt: skip
def test_the_answers_of_the_service_are_the_expected_ones(raw):
    """Two implementations of one promise, for each form of a model's output."""
    served = json.loads(json.dumps(outputs.outputs_by_row(raw, 2)))
    expected = expected_answers(cast("Any", Returns(raw)), pd.DataFrame({"x": [1, 2]}))
    assert largest_difference(expected, served) == 0.0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e9, 1e9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(first=JSON, second=JSON)
def test_only_equal_answers_have_no_difference(first, second):
    assert largest_difference(first, first) == 0.0
    if json.dumps(first) != json.dumps(second) and first != second:
        assert largest_difference(first, second) > 0.0


@pytest.mark.parametrize(
    ("expected", "served", "difference"),
    [
        (2**53 + 1, float(2**53), 1.0), (1, True, math.inf), (0, None, math.inf), (None, 0.0, math.inf),
        ("1", 1, math.inf), ({"a": 1}, "{'a': 1}", math.inf), ({"a": 1}, {"a": 1, "b": 2}, math.inf),
        ([1, 2], [1], math.inf),
        (math.inf, math.nan, math.inf), (math.nan, math.nan, 0.0), (math.nan, None, 0.0),
        ("2026-03-01T12:30:00", "2026-03-01T12:30:00.000000000", 0.0), ("2026-03-01", "2026-03-02", math.inf),
        ("2026-03-01T12:00:00+01:00", "2026-03-01T11:00:00Z", 0.0), ("2026-99-01", "2026-99-02", math.inf),
    ],
)  # fmt: skip
def test_a_difference_is_that_of_values(expected, served, difference):
    assert largest_difference(expected, served) == difference
