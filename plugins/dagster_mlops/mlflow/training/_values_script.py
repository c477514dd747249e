"""The learned values of a model, by path: the numbers, texts and bytes that it would be stored as.

It runs in the recorded environment, beside the script of answers, and needs no more than NumPy.
"""

import array
import datetime
import json
import random
import re
import sys
import tempfile
import threading
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_MOST_VALUES = 500_000
TYPE = "(type)"
"""Last part of the path of a name: that of an object's class, or of a class or function that is stored by its name."""
_DEEPEST = 1000  # steps from the model to a value
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# Objects of a process: they are made anew when a model is loaded, and hold nothing that it has learned.
_LOCKS = type(threading.Lock()), type(threading.RLock())
_OF_PROCESS = (type, types.ModuleType, types.BuiltinFunctionType, random.Random, *_LOCKS)


def learned(model: Any) -> Iterator[tuple[str, Any]]:
    """Each value in a model by its path: arrays of numbers, texts, bytes; None for what cannot be looked into.

    An object consists of what `pickle` would store of it, so that none has parts that are passed over.
    """
    import numpy as np

    seen: set[int] = set()
    alive: list[Any] = []  # so that no id is given twice
    waiting: list[tuple[str, int, Any]] = [("", 0, model)]
    count = 0
    while waiting:
        path, depth, value = waiting.pop()
        if count >= _MOST_VALUES or depth > _DEEPEST:
            yield path, None
            return
        value = _plain(value)
        if isinstance(value, str | bytes) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf"):
            count += 1
            yield path, value
        elif id(value) not in seen:
            seen.add(id(value))
            alive.append(value)
            try:
                inner_values = parts(value)
            except Exception:  # noqa: BLE001 - an object may refuse to be stored
                yield path, None
            else:
                waiting += [(f"{path}.{name}".lstrip("."), depth + 1, inner) for name, inner in inner_values]


def stored_content(file: Path) -> Any:
    """The content of a file in a form that :func:`learned` looks into, if there is one; else its bytes."""
    import pandas as pd

    readers: dict[str, Any] = {
        ".json": lambda: json.loads(file.read_text()),
        ".csv": lambda: pd.read_csv(file),
        ".parquet": lambda: pd.read_parquet(file),
        ".npy": lambda: _array(file),
        ".npz": lambda: dict(_array(file)),
        ".pkl": lambda: pd.read_pickle(file),
        ".pickle": lambda: pd.read_pickle(file),
        ".joblib": lambda: sys.modules["joblib"].load(file),
        **dict.fromkeys((".txt", ".yaml", ".yml", ".toml", ".ini"), lambda: file.read_text()),
    }
    try:
        return readers[file.suffix]()
    except Exception:  # noqa: BLE001 - of another form than its name says
        return file.read_bytes()


def _array(file: Path) -> Any:
    import numpy as np

    return np.load(file)


def _plain(value: Any) -> Any:
    """Numbers and arrays of numbers as arrays, dates as texts."""
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, datetime.timedelta):
        return np.asarray(value.total_seconds())
    if isinstance(value, datetime.date | datetime.time | Path):
        return str(value)
    if isinstance(value, array.array):
        return np.array(value)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, list | tuple) and value and all(type(inner) in (int, float, bool) for inner in value):
        return _numbers(value)
    if isinstance(value, bool | int | float | complex | np.number | np.bool_ | np.datetime64 | np.timedelta64):
        return _plain(_numbers(value))
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "mM":
            return value.astype("int64")
        if value.dtype.kind == "c":
            return np.stack([value.real, value.imag])
    return value


def _numbers(value: Any) -> Any:
    import numpy as np

    numbers = np.asarray(value)
    return numbers if numbers.dtype.kind in "biufcmM" else "_".join(f"{n:_}" for n in np.ravel(value))  # beyond 64 bits


def parts(value: Any) -> list[tuple[str, Any]]:
    """The named parts of a container or object: what it would be stored as."""
    import numpy as np

    if isinstance(value, type | types.BuiltinFunctionType) and _importable(value):
        return [(TYPE, value.__qualname__)]
    if value is None or isinstance(value, _OF_PROCESS) or type(value).__module__.startswith("numpy.random"):
        return []
    if isinstance(value, Mapping):
        return [(_ADDRESS.sub("", str(name)), inner) for name, inner in value.items()]
    if isinstance(value, np.ndarray) and value.dtype.names:
        return [(name, value[name]) for name in value.dtype.names]
    if isinstance(value, np.ndarray):
        return _numbered(value.ravel().tolist())
    if isinstance(value, list | tuple):
        return _numbered(value)
    if isinstance(value, set | frozenset):
        return _numbered(sorted(value, key=repr))
    if isinstance(value, types.FunctionType):
        return _function(value)
    if isinstance(value, types.MethodType):
        return [("function", value.__func__), ("self", value.__self__)]
    if (stored := _of_library(value)) is not None:
        return stored
    kind = type(value)
    # Without its module, which a library may move.
    own_class = [(TYPE, kind.__qualname__)] if _importable(kind) else [("class", _class(kind))]
    if type(value).__getstate__ is not object.__getstate__:
        return [*own_class, ("", value.__getstate__())]
    by_default = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    if by_default and hasattr(value, "__dict__") and not hasattr(kind, "__slots__"):
        return [*own_class, *((str(name), inner) for name, inner in vars(value).items())]
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return [(TYPE, reduced)]
    names = ("", "arguments", "state", "items", "entries")
    pieces = list(zip(names, reduced, strict=False))[1:]
    return [*own_class, *((name, list(piece) if name in names[3:] and piece else piece) for name, piece in pieces)]


def _numbered(values: Any) -> list[tuple[str, Any]]:
    return [(str(position), inner) for position, inner in enumerate(values)]


def _of_library(value: Any) -> list[tuple[str, Any]] | None:
    """The parts of an object that its library stores in a form of its own."""
    # A class of the user's may have methods of the same names.
    modules = {kind.__module__.partition(".")[0] for kind in type(value).__mro__}
    module = type(value).__module__.partition(".")[0]
    if module == "xgboost" and hasattr(value, "save_raw"):
        return [("json", json.loads(bytes(value.save_raw("json"))))]
    if module == "catboost" and hasattr(value, "save_model"):
        return _of_catboost(value)
    # Keras's state under PyTorch has names that count the layers of the process.
    for library, public in (("lightgbm", "dump_model"), ("keras", "get_weights"), ("torch", "state_dict")):
        if library in modules and callable(getattr(value, public, None)):
            return [(public, getattr(value, public)())]
    if module == "pandas" and hasattr(value, "to_numpy"):
        labels = [(name, getattr(value, name, None)) for name in ("index", "columns") if value.ndim]
        return [("values", value.to_numpy()), *((n, label.to_numpy()) for n, label in labels if label is not None)]
    if module == "scipy" and hasattr(value, "tocoo"):
        return [("values", value.toarray())]
    return None


def _of_catboost(model: Any) -> list[tuple[str, Any]]:
    """The trees of a model, which is otherwise stored as bytes with the time of its training in them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.json")
        model.save_model(str(file), format="json")
        trees = json.loads(file.read_text())
    return [("parameters", model.get_params()), *((name, part) for name, part in trees.items() if name != "model_info")]


def _importable(kind: Any) -> bool:
    """True if a class or function is stored by its name; `cloudpickle` stores others by their content."""
    place: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        place = getattr(place, name, None)
    return place is kind


def _class(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("__")}


def _function(function: types.FunctionType) -> list[tuple[str, Any]]:
    """The code and the values of a function that is stored by its content."""
    if _importable(function):
        return [(TYPE, function.__qualname__)]
    code, cells = function.__code__, function.__closure__ or ()
    values = {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
    constants = [constant for constant in code.co_consts if not isinstance(constant, types.CodeType)]
    facts = {"code": code.co_code, "constants": constants, "names": list(code.co_names), "globals": values}
    return [*facts.items(), ("closure", [c.cell_contents for c in cells]), ("defaults", function.__defaults__)]
