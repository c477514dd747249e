"""The answers and the learned values of one stored model, in a process of its own, compared with those of another one.

It runs in the recorded environment, and needs no more than MLflow. A request has ``model`` (an MLmodel folder),
``rows`` (a pickle of inputs), ``save`` (the file for the answers and values), ``other`` (such a file of another model,
or empty) and the ``tolerance`` of learned values. Two models in one process would share the modules of their code.
"""

import pickle
import re
import runpy
import warnings
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")  # before the imports, which warn first

_VALUES = runpy.run_path(str(Path(__file__).with_name("_values_script.py")))
_DEEPEST = 40
_LARGE = 1000.0  # the largest size by which smaller numbers of a column are judged: noise around zero is the same
# Names of values that another training of the same model need not repeat: of generators and of times.
_DONE = "fit|fitted|score|train|trained|training|refit|elapsed|created|saved|started?|finished|ended|updated|logged"
_CHANCE = re.compile(r"(^|[._])rng([._]|$)|(^|\.)_?random(_state|_generator)?_?([.]|$)", re.IGNORECASE)
_CHANCE_OF_ONE = re.compile(
    rf"(^|[._])(uuid|pid)([._]|$)|(^|[._])({_DONE})_?(times?|seconds|duration|at|on|date|timestamp)_?$", re.IGNORECASE
)
# Of many values, only what a search of scikit-learn's keeps: `train_times` or `pid` may be what was learned from.
_TIMES_OF_SEARCH = re.compile(r"(^|[._])(mean|std)_(fit|score)_time$")
# A single value of such a name may be a time, or the weight of a feature that is one.
_PERHAPS_TIME = re.compile(r"(^|[._])(times?|date|datetime|timestamp|ts|at|duration|elapsed|seconds)_?$", re.IGNORECASE)
# A text that may name a place or a time: a path, a time of day, or an id.
_PLACE_OR_TIME = re.compile(r"/|\d\d:\d\d:\d\d|(?<![.\d])[0-9a-f]{12,}|[0-9a-f]{8}-[0-9a-f]{4}-", re.IGNORECASE)


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """Save the model's answers and values, and return how they differ from those of the ``other`` model."""
    import mlflow

    with open(task["rows"], "rb") as file:
        rows = pickle.load(file)
    model = mlflow.pyfunc.load_model(task["model"])
    answers = _columns(model.predict(rows))
    ours = {"answers": answers | _probabilities(model, rows, answers), "values": _values(model, task["model"])}
    with open(task["save"], "wb") as file:
        pickle.dump(ours, file)
    if not task["other"]:
        return {}
    with open(task["other"], "rb") as file:
        theirs = pickle.load(file)
    return {
        "rows": len(rows),
        "distinct": _distinct(ours["answers"]),
        **_difference(theirs["answers"], ours["answers"]),
        "learned": _values_difference(theirs["values"], ours["values"], task["tolerance"]),
    }


def _probabilities(model: Any, rows: Any, answers: Mapping[str, Any]) -> dict[str, Any]:
    """The probabilities of a classifier that answers with labels: two models that differ may agree on all labels."""
    raw = _raw(model)
    if len(answers) != 1 or not callable(getattr(raw, "predict_proba", None)):
        return {}
    try:
        return {f"probability of {name}": column for name, column in _columns(raw.predict_proba(rows)).items()}
    except Exception:  # noqa: BLE001 - MLflow may have changed the rows for it
        return {}


def _distinct(columns: Mapping[str, Any]) -> int:
    """The number of distinct answers, in the column that has most."""
    import numpy as np

    leaves = [_flat(column) for column in columns.values()]
    return max((len(np.unique(numbers)) + len(set(map(repr, texts))) for numbers, texts in leaves), default=0)


def _values(model: Any, folder: str) -> dict[str, Any]:
    """The learned values of the model, and of the files that it brings along."""
    values: dict[str, Any] = {}
    artifacts = model.metadata.flavors.get("python_function", {}).get("artifacts") or {}
    for name, entry in artifacts.items():
        place = Path(folder, entry["path"])
        for file in sorted(f for f in [place, *place.rglob("*")] if f.is_file()):
            inside = file.relative_to(place).as_posix()
            content = _VALUES["stored_content"](file)
            values |= {f"artifacts/{name}/{inside}: {path}": v for path, v in _VALUES["learned"](content)}
    for path, value in _VALUES["learned"](_raw(model)):
        values[path] = value.replace(folder, "") if isinstance(value, str) else value
    return values


def _columns(answers: Any) -> dict[str, Any]:
    """A model's answers as columns by name; an array of more than two dimensions, or anything else, is one column."""
    import numpy as np
    import pandas as pd

    if isinstance(answers, pd.DataFrame):
        # Two columns may have the same name.
        return {f"{position}: {name}": answers.iloc[:, position] for position, name in enumerate(answers.columns)}
    if isinstance(answers, pd.Series):
        return {str(answers.name): answers}
    if callable(getattr(answers, "to_pandas", None)):  # of Polars and Arrow
        return _columns(answers.to_pandas())
    if isinstance(answers, Iterator):
        return {"": list(answers)}
    if isinstance(answers, Mapping):
        return {str(name): value for name, value in answers.items()}
    answers = answers.toarray() if hasattr(answers, "toarray") else answers
    if isinstance(answers, np.ndarray) and answers.ndim == 2:
        return {str(position): answers[:, position] for position in range(answers.shape[1])}
    return {"": answers}


def _difference(left: Any, right: Any) -> dict[str, Any]:
    """The largest difference of numbers, relative to their size or that of most in a column; the count of others."""
    left, right = _columns(left), _columns(right)
    if list(left) != list(right) or any(_size(left[name]) != _size(right[name]) for name in left):
        return {"largest_difference": None, "others": sum(map(_size, left.values()))}
    largest, unequal = 0.0, 0
    for name in left:
        difference, count = _column_difference(left[name], right[name])
        largest, unequal = max(largest, difference), unequal + count
    return {"largest_difference": largest, "others": unequal}


def _size(column: Any) -> int:
    return len(column) if hasattr(column, "__len__") else 1


def _column_difference(left: Any, right: Any) -> tuple[float, int]:
    """The same of two columns, element by element: the cells may be arrays, lists, mappings or objects."""
    import numpy as np

    (old, old_others), (new, new_others) = _flat(left), _flat(right)
    count = sum(a != b for a, b in zip_longest(old_others, new_others))
    if old.shape != new.shape:
        return float("inf"), count
    same = (old == new) | (np.isnan(old) & np.isnan(new))
    if same.all():
        return 0.0, count
    sizes = np.abs(old[np.isfinite(old) & (old != 0)])
    # Not of the largest number: one outlier would hide the differences of all others. Nor may many large ones, such as
    # totals and timestamps, hide those of the small ones.
    usual = min(np.quantile(sizes, 0.9, method="lower"), _LARGE) if sizes.size else 0.0
    with np.errstate(all="ignore"):
        apart = (np.abs(old - new) / np.maximum(np.abs(old), usual))[~same].max()
    # NaN where one of them has no number; infinite where all were zero.
    return float(apart) if np.isfinite(apart) else float("inf"), count


def _flat(column: Any) -> tuple[Any, list[Any]]:
    """All numbers of a column, in order, and everything else in it, with its structure."""
    import numpy as np

    numbers: list[Any] = []
    texts: list[Any] = []
    for leaf in _leaves(column, 0):
        if isinstance(leaf, np.ndarray):
            # As floats, long ids would be equal to their neighbours.
            exact = leaf.dtype.kind in "iu" and leaf.size and max(abs(int(leaf.max())), abs(int(leaf.min()))) > 2**53
            texts.extend(leaf.ravel().tolist()) if exact else numbers.append(leaf.ravel().astype("float64"))
        else:
            texts.append(leaf)
    return np.concatenate(numbers) if numbers else np.empty(0), texts


def _leaves(cell: Any, depth: int) -> Iterator[Any]:
    """The arrays of numbers in a value; everything else as texts."""
    import numpy as np
    import pandas as pd

    value: Any = cell
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, pd.Series | pd.Index):
        if pd.api.types.is_numeric_dtype(value.dtype) and not isinstance(value.dtype, np.dtype):
            present = value.notna().to_numpy() if isinstance(value, pd.Series) else np.asarray(value.notna())
            integral = pd.api.types.is_integer_dtype(value.dtype) and present.all()
            value = value.to_numpy("int64") if integral else value.to_numpy("float64", na_value=np.nan)
        else:
            value = value.to_numpy()
    if isinstance(value, pd.DataFrame) or callable(getattr(value, "to_pandas", None)):
        value = _columns(value)
    value = value.toarray() if hasattr(value, "toarray") else value
    if isinstance(value, bool | int | float | np.number | np.bool_) and not isinstance(value, np.ndarray):
        big = isinstance(value, int) and abs(value) > 2**53
        yield str(value) if big else np.asarray([value])
    elif isinstance(value, complex):
        yield np.asarray([value.real, value.imag])
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        if value.ndim > 1:
            yield f"shape {value.shape}"
        yield value
    elif isinstance(value, np.ndarray) and value.dtype.kind == "c":
        yield from _leaves([np.real(value), np.imag(value)], depth)
    elif isinstance(value, np.ndarray) and value.dtype.names:
        for name in value.dtype.names:
            yield from _leaves(value[name], depth + 1)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "mM":
        yield from value.ravel().astype("int64").tolist()
    elif isinstance(value, np.ndarray | list | tuple):
        cells = value.ravel() if isinstance(value, np.ndarray) else value
        if depth:
            yield f"{len(cells)} items"
        for inner in cells:
            yield from _leaves(inner, depth + 1)
    elif isinstance(value, Mapping) and depth < _DEEPEST:
        for name, inner in value.items():
            yield str(name)
            yield from _leaves(inner, depth + 1)
    elif value is None or value is pd.NaT or value is pd.NA:
        yield np.asarray([np.nan])
    elif isinstance(value, str | bytes | set | frozenset):
        yield value
    elif getattr(value, "__dict__", None) and depth < _DEEPEST:
        yield type(value).__qualname__
        yield from _leaves(vars(value), depth + 1)
    else:
        # An error here says that the answers cannot be compared.
        parts = _VALUES["parts"](value) if depth < _DEEPEST else None
        yield type(value).__qualname__
        for name, inner in parts or [("", repr(value))]:
            yield name
            yield from _leaves(inner, depth + 1)


def _raw(model: Any) -> Any:
    """The object in MLflow's wrapper."""
    for unwrap in ("unwrap_python_model", "get_raw_model"):
        try:
            raw = getattr(model, unwrap)()
        except Exception:  # noqa: BLE001 - a flavour without it raises any error
            continue
        if raw is not None:
            return raw
    return model._model_impl  # MLflow has no public name for it


def _values_difference(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """The number of learned values that were compared, the paths of those that differ, and of those that may.

    The latter are ``opaque``: bytes, objects that cannot be looked into, and single values named after times.
    """
    import numpy as np

    compared, different, opaque = 0, [], []
    for path in sorted(old.keys() | new.keys()):
        left: Any = old.get(path)
        right: Any = new.get(path)
        if isinstance(left, np.ndarray) and isinstance(right, np.ndarray) and left.shape == right.shape:
            largest, count = _column_difference(left, right)
            same = largest <= tolerance and not count
        else:
            same = left is not None and type(left) is type(right) and not isinstance(left, np.ndarray) and left == right
        compared += np.size(right) * same * (not path.endswith(_VALUES["TYPE"]))
        many = any(isinstance(value, np.ndarray) and value.ndim for value in (left, right))
        if same or _CHANCE.search(path) or (_TIMES_OF_SEARCH if many else _CHANCE_OF_ONE).search(path):
            continue
        single = isinstance(left, np.ndarray) and left.ndim == 0
        place = isinstance(left, str) and isinstance(right, str) and _PLACE_OR_TIME.search(left + right)
        unclear = place or (single and _PERHAPS_TIME.search(path)) or _opaque(old, path) or _opaque(new, path)
        (opaque if unclear else different).append(path)
    return {"compared": int(compared), "different": different[:5], "opaque": opaque[:5]}


def _opaque(values: dict[str, Any], path: str) -> bool:
    return path in values and (values[path] is None or isinstance(values[path], bytes))
