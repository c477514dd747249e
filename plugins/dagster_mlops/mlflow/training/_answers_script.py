"""The answers and the learned values of one stored model, in a process of its own, compared with those of another one.

It runs in the recorded environment, and needs no more than MLflow. A request has ``model`` (an MLmodel folder),
``rows`` (a pickle of inputs), ``save`` (the file for the answers and values), ``other`` (such a file of another model,
or empty) and the ``tolerance`` of learned values. Two models in one process would share the modules of their code.
"""

import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

warnings.simplefilter("ignore")  # before the imports, which warn first

_MOST_VALUES = 200_000
_DEEPEST = 40
_LONG_TEXT = 200  # characters, from which a text may be a model
# Names of values that another training of the same model need not repeat.
_CHANCE = re.compile(
    r"(^|_)(times?|date|datetime|timestamp|ts|at|duration|elapsed|seconds|uuid|rng|random|pid)(_|$)", re.IGNORECASE
)


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """Save the model's answers and values, and return how they differ from those of the ``other`` model."""
    import mlflow

    with open(task["rows"], "rb") as file:
        rows = pickle.load(file)
    model = mlflow.pyfunc.load_model(task["model"])
    ours = {"answers": _columns(model.predict(rows)), "values": dict(_learned(_raw(model)))}
    with open(task["save"], "wb") as file:
        pickle.dump(ours, file)
    if not task["other"]:
        return {}
    with open(task["other"], "rb") as file:
        theirs = pickle.load(file)
    return {
        "rows": len(rows),
        **_difference(theirs["answers"], ours["answers"]),
        "learned": _values_difference(theirs["values"], ours["values"], task["tolerance"]),
    }


def _columns(answers: Any) -> dict[str, Any]:
    """A model's answers as columns by name; an array of more than two dimensions, or anything else, is one column."""
    import numpy as np
    import pandas as pd

    if isinstance(answers, pd.DataFrame):
        return {str(name): answers.iloc[:, position] for position, name in enumerate(answers.columns)}
    if isinstance(answers, pd.Series):
        return {str(answers.name): answers}
    if isinstance(answers, Mapping):
        return {str(name): value for name, value in answers.items()}
    answers = answers.toarray() if hasattr(answers, "toarray") else answers
    if isinstance(answers, np.ndarray) and answers.ndim == 2:
        return {str(position): answers[:, position] for position in range(answers.shape[1])}
    return {"": answers}


def _difference(left: Any, right: Any) -> dict[str, Any]:
    """The largest difference of numbers, relative to the largest in their column, and the count of others."""
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
    with np.errstate(all="ignore"):
        apart = np.abs(old - new)[~same].max()
    scale = np.abs(old[np.isfinite(old)]).max(initial=0.0)
    # NaN where one of them has no number; no scale where all were zero.
    return float(apart / scale) if np.isfinite(apart) and scale else float("inf"), count


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
    if isinstance(value, pd.DataFrame):
        value = {str(name): value[name] for name in value.columns}
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
        yield re.sub(r" at 0x[0-9a-f]+", "", repr(value))


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


def _learned(model: Any) -> Iterator[tuple[str, Any]]:
    """The numbers, arrays and opaque bytes or long texts in a model, by path."""
    import numpy as np

    seen: set[int] = set()
    alive: list[Any] = []  # so that no id is given twice
    waiting: list[tuple[str, Any]] = [("", model)]
    count = 0
    while waiting and count < _MOST_VALUES:
        path, value = waiting.pop()
        if path.count(".") > _DEEPEST or _CHANCE.search(path.rpartition(".")[2]):
            continue
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        if isinstance(value, np.ndarray) and value.dtype.names:
            waiting += [(f"{path}.{name}", value[name]) for name in value.dtype.names]
        elif isinstance(value, bool | int | float | np.number | np.ndarray) and np.asarray(value).dtype.kind in "biuf":
            count += 1
            yield path, np.asarray(value)
        elif isinstance(value, bytes | bytearray) or (isinstance(value, str) and len(value) >= _LONG_TEXT):
            count += 1
            yield path, bytes(value) if isinstance(value, bytearray) else value
        elif id(value) not in seen:
            seen.add(id(value))
            alive.append(value)
            waiting += [(f"{path}.{name}".lstrip("."), inner) for name, inner in _parts(value)]


def _parts(value: Any) -> list[tuple[str, Any]]:
    """The named parts of a container or object: what it would be stored as."""
    import numpy as np

    if isinstance(value, Mapping):
        return [(str(name), inner) for name, inner in value.items()]
    if isinstance(value, np.ndarray):
        return [(str(position), inner) for position, inner in enumerate(value.ravel().tolist())]
    if isinstance(value, list | tuple):
        return [(str(position), inner) for position, inner in enumerate(value)]
    if isinstance(value, str | type | type(re)) or callable(getattr(value, "random_sample", None)) or value is None:
        return []
    module = type(value).__module__.partition(".")[0]
    try:
        if module == "xgboost" and hasattr(value, "save_raw"):
            return [("json", json.loads(bytes(value.save_raw("json"))))]
        # Of LightGBM, PyTorch and Keras.
        for public in ("dump_model", "state_dict", "get_weights"):
            if callable(getattr(value, public, None)):
                return [(public, getattr(value, public)())]
        if module in ("pandas", "scipy") and hasattr(value, "to_numpy" if module == "pandas" else "tocoo"):
            array = value.to_numpy() if module == "pandas" else value.toarray()
            return [("values", array)]
        if type(value).__getstate__ is not object.__getstate__:
            return [("", value.__getstate__())]
    except Exception:  # noqa: BLE001 - an object may refuse to be stored
        return []
    return [(str(name), inner) for name, inner in getattr(value, "__dict__", {}).items()]


def _values_difference(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """The number of learned values that were compared, and the paths of those that differ: numbers, and others."""
    import numpy as np

    compared, different, opaque = 0, [], []
    for path in sorted(old.keys() | new.keys()):
        left: Any = old.get(path)
        right: Any = new.get(path)
        if isinstance(left, bytes | str) or isinstance(right, bytes | str):
            compared += left == right
            opaque += [path] if left != right else []
            continue
        compared += np.size(left)
        same = left is not None and right is not None and left.shape == right.shape
        if same:
            largest, count = _column_difference(left, right)
            same = largest <= tolerance and not count
        different += [] if same else [path]
    return {"compared": int(compared), "different": different[:5], "opaque": opaque[:5]}
