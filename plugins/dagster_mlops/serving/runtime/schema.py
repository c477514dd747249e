"""The features of a model as types: what a request may send is checked while its JSON is parsed."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

import msgspec
import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from mlflow.pyfunc import PyFuncModel
    from mlflow.types import ParamSpec, Schema

TAKES_AN_ARRAY = (
    "the model takes an array, as networks of Keras and PyTorch do, and the rows of a deployment have named columns. "
    "Log an mlflow.pyfunc.PythonModel that takes the columns and calls the network."
)
_FLOAT32 = float(np.finfo(np.float32).max)
_EXACT = 2**53  # integers beyond are not all float64
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?P<zone>Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)?)?", re.ASCII
)
_PLAIN: dict[str, Any] = {
    "boolean": bool,
    "integer": Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)],
    "long": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    "float": Annotated[float, msgspec.Meta(ge=-_FLOAT32, le=_FLOAT32)],
    "double": float,
    "string": str,
    "binary": bytes,  # base64 in JSON
    "datetime": np.datetime64,
}
_MAY_BE_NULL = ("float", "double", "string", "binary", "datetime")
_DTYPES = {"boolean": "bool", "integer": "int32", "long": "int64", "float": "float32", "double": "float64"}


class Features:
    """The named columns of a model's signature, in its order.

    >>> from mlflow.types import ColSpec, Schema
    >>> features = Features(Schema([ColSpec("double", "wind"), ColSpec("long", "hour")]))
    >>> features.checked([{"hour": 7, "wind": None, "note": "left out"}])
    [(None, 7)]
    >>> features.checked([{"hour": 7.5, "wind": 1}])
    Traceback (most recent call last):
        ...
    ValueError: Expected `int`, got `float` - at `$[0].hour`
    """

    def __init__(self, schema: "Schema") -> None:
        self.names = [str(name) for name in schema.input_names()]
        self.optional = [str(name) for name in schema.optional_input_names()]
        self._kinds = [getattr(column.type, "name", "") for column in schema.inputs]
        self.kinds = dict(zip(self.names, self._kinds, strict=True))
        self.numeric = all(kind in _DTYPES for kind in self._kinds) and not self.optional
        """Every feature is a required number or boolean, so that rows are a matrix."""
        self._integers = [n for n, kind in zip(self.names, self._kinds, strict=True) if kind in ("integer", "long")]
        self._longs = [i for i, kind in enumerate(self._kinds) if kind == "long"]
        self._singles = [i for i, kind in enumerate(self._kinds) if kind == "float"]
        fields: list[Any] = []
        for number, column in enumerate(schema.inputs):
            kind = _type_of(column.type, f"{number}")
            if not column.required or getattr(column.type, "name", "") in _MAY_BE_NULL:
                kind = kind | None
            field = (f"f{number}", kind) if column.required else (f"f{number}", kind | msgspec.UnsetType, msgspec.UNSET)
            fields.append(field)
        fields.sort(key=len)  # required ones first, as a struct wants them
        positions = [int(field[0][1:]) for field in fields]
        self._order = None if positions == sorted(positions) else [positions.index(i) for i in range(len(fields))]
        rename = {f"f{number}": name for number, name in enumerate(self.names)}
        self.row = msgspec.defstruct("Row", fields, rename=rename, gc=False)

    def values(self, rows: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The values of parsed rows, in the order of the features."""
        values = [msgspec.structs.astuple(row) for row in rows]
        return values if self._order is None else [tuple(row[i] for i in self._order) for row in values]

    def checked(self, rows: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The values of rows that are dictionaries.

        Raises:
            ValueError: a feature is missing, or its value is of another type or out of its range; it says which.
        """
        try:
            return self.values(msgspec.convert(self.with_whole_numbers(rows), list[self.row], dec_hook=from_json))
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None

    def with_whole_numbers(self, rows: Any) -> Any:
        """Rows whose integers may have been written as ``3.0``, which JSON does not tell from 3; what else is left."""
        if not isinstance(rows, list) or not self._integers:
            return rows
        return [{**row, **_whole(row, self._integers)} if isinstance(row, dict) else row for row in rows]

    def rows_of_table(self, table: "pa.Table") -> list[Any]:
        """The rows of an Arrow table, parsed; columns that are no features are left out.

        Raises:
            ValueError: as of :meth:`checked`.
        """
        rows = table.select([name for name in self.names if name in table.column_names]).to_pylist()
        try:
            return msgspec.convert(rows, list[self.row], dec_hook=from_json, builtin_types=(bytes, datetime))
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None

    def matrix(self, values: Sequence[tuple[Any, ...]]) -> "np.ndarray | None":
        """Values of numeric features as float64, NaN for null; None where an integer has no float64 of its own."""
        matrix = np.array(values, dtype=np.float64)
        if self._longs and np.abs(matrix[:, self._longs]).max(initial=0) >= _EXACT:
            return None
        for single in self._singles:  # as the model would have got them
            matrix[:, single] = matrix[:, single].astype(np.float32)
        return matrix

    def frame(self, values: Sequence[tuple[Any, ...]]) -> "pd.DataFrame":
        """Values as the model's signature wants them; an optional feature that no row has gets no column."""
        import pandas as pd

        data: dict[str, Any] = {}
        for name, kind, column in zip(self.names, self._kinds, zip(*values, strict=True), strict=True):
            sent = [None if value is msgspec.UNSET else value for value in column]
            if all(value is msgspec.UNSET for value in column):
                continue
            has_null = kind in ("boolean", "integer", "long") and None in sent
            if kind in _DTYPES and not has_null:
                data[name] = np.array(sent, dtype=_DTYPES[kind])
            elif kind == "datetime":
                data[name] = np.array(["NaT" if at is None else at for at in sent], dtype="datetime64[ns]")
            else:
                data[name] = pd.Series(sent, dtype=object)
        return pd.DataFrame(data, index=range(len(values)))


def features_of_model(model: "PyFuncModel") -> Features:
    """The features of a model.

    Raises:
        ValueError: the model was logged without a signature of named columns, or with a type that JSON has no form of.
    """
    return Features(signature_inputs(model))


def signature_inputs(model: "PyFuncModel") -> "Schema":
    """The model's input schema.

    Raises:
        ValueError: the model was logged without a signature of named columns.
    """
    schema = model.metadata.get_input_schema()
    if schema is not None and schema.is_tensor_spec():
        raise ValueError(TAKES_AN_ARRAY)
    if schema is None or not schema.has_input_names():
        raise ValueError(
            "the model has no signature with named columns. Log it with signature=infer_signature(X, predictions)."
        )
    return schema


def from_json(kind: type, value: Any) -> Any:
    """The value of a type that JSON does not have: a time of ISO 8601 in UTC, to the nanosecond."""
    if kind is not np.datetime64:
        raise NotImplementedError(kind)
    if isinstance(value, datetime):  # of Arrow, not of JSON
        value = (value.astimezone(UTC) if value.tzinfo else value).replace(tzinfo=None).isoformat()
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("Expected a time such as `2026-03-01T12:30:00Z`")
    zone = match["zone"] or "Z"
    at = np.datetime64(value.removesuffix(zone), "ns")
    if not str(at).startswith(value[:10]):  # numpy wraps years that nanoseconds do not reach
        raise ValueError("Expected a time between the years 1678 and 2262")
    if zone == "Z":
        return at
    offset = np.timedelta64(int(zone[1:3]) * 60 + int(zone[4:6]), "m")
    return at - offset if zone[0] == "+" else at + offset


def _whole(row: dict[str, Any], names: Sequence[str]) -> dict[str, int]:
    sent = {name: row[name] for name in names if isinstance(row.get(name), float)}
    return {name: int(value) for name, value in sent.items() if value.is_integer() and abs(value) <= _EXACT}


def plain_type(kind: str) -> Any:
    """The type of a value by MLflow's name of it; any for another name."""
    return _PLAIN.get(kind, Any)


def parameter_type(param: "ParamSpec") -> Any:
    """The type of a parameter of the model: a value of its type, or a list of them."""
    kind = _type_of(param.dtype, f"_{param.name}")
    return kind if param.shape is None else list[kind]


def _type_of(kind: Any, name: str) -> Any:
    """The Python type of one of MLflow's; objects are dictionaries, and `name` tells their types apart."""
    if plain := _PLAIN.get(getattr(kind, "name", "")):
        return plain
    nested: dict[str, Callable[[], Any]] = {
        "Array": lambda: list[_type_of(kind.dtype, name)],
        "Map": lambda: dict[str, _type_of(kind.value_type, name)],
        "Object": lambda: _object(kind, name),
        "AnyType": lambda: Any,
    }
    if (make := nested.get(type(kind).__name__)) is None:
        raise ValueError(f"the signature has a column of type {kind}, which rows in JSON have no form of.")
    return make()


def _object(kind: Any, name: str) -> Any:
    fields = {}
    for number, item in enumerate(kind.properties):
        inner = _type_of(item.dtype, f"{name}_{number}")
        fields[item.name] = inner if item.required else NotRequired[inner | None]
    make: Any = TypedDict
    return make(f"Object{name}", fields)
