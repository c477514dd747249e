"""The requests that a model's features allow, and limits to what a client decides of the prediction log."""

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from .arrow_rows import columns_of
from .schema import Features, from_json, parameter_type, plain_type

if TYPE_CHECKING:
    from mlflow.types import ParamSchema

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
_ID_FORM = r"^[\x21-\x7e]{1,200}$"
_ID = re.compile(r"[\x21-\x7e]{1,200}")


@dataclass(frozen=True)
class Request:
    """Checked values by row, the rows as they are logged, ids if the client chose any."""

    values: list[tuple[Any, ...]]
    inputs: list[dict[str, Any]]
    ids: list[str] | None = None
    params: dict[str, Any] | None = None
    entities: list[dict[str, Any]] | None = None
    """In place of values: those are looked up."""


class RequestReader:
    """Reads requests in JSON (``{"rows": [{feature: value, …}, …], "ids": […], "params": {…}}``) and in Arrow.

    A stream of Arrow has a column for each feature, and may have one named ``request_id``. With `keys`, the names and
    types of an entity, a request in JSON may have ``entities`` in place of ``rows``.
    """

    def __init__(
        self,
        features: Features,
        params: "ParamSchema | None",
        *,
        most_rows: int,
        most_bytes: int = 16 * 2**20,
        keys: Mapping[str, str] | None = None,
    ) -> None:
        self._features, self._most_rows, self._most_bytes = features, most_rows, most_bytes
        some = msgspec.Meta(min_length=1, max_length=most_rows)
        fields: list[Any] = [
            ("rows", Annotated[list[features.row], some]),
            ("ids", list[Annotated[str, msgspec.Meta(pattern=_ID_FORM)]] | None, None),
        ]
        if keys is not None:
            kinds = [(f"k{n}", plain_type(kind)) for n, kind in enumerate(keys.values())]
            names = {f"k{n}": name for n, name in enumerate(keys)}
            entity = msgspec.defstruct("Entity", kinds, rename=names, forbid_unknown_fields=True)
            parts = [("rows", Annotated[list[features.row], some]), ("entities", Annotated[list[entity], some])]
            fields[:1] = [(name, kind | msgspec.UnsetType, msgspec.UNSET) for name, kind in parts]
        if params and params.params:
            by_name = [
                (f"p{number}", parameter_type(param) | msgspec.UnsetType, msgspec.UNSET)
                for number, param in enumerate(params.params)
            ]
            names = {f"p{number}": param.name for number, param in enumerate(params.params)}
            kind = msgspec.defstruct("Parameters", by_name, rename=names, forbid_unknown_fields=True)
            fields.append(("params", kind | None, None))
        self.kind = msgspec.defstruct("Request", fields, forbid_unknown_fields=True)
        self._decoder = msgspec.json.Decoder(self.kind, dec_hook=from_json)

    def json(self, body: bytes) -> Request:
        """The request in a body of JSON.

        Raises:
            ValueError: it is not JSON, or a value is missing, of another type or out of its range; it says which.
        """
        try:
            parsed = self._decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(str(error)) from None
        params = msgspec.to_builtins(parsed.params) if getattr(parsed, "params", None) is not None else None
        entities = getattr(parsed, "entities", msgspec.UNSET)
        if (parsed.rows is msgspec.UNSET) is (entities is msgspec.UNSET) and hasattr(parsed, "entities"):
            raise ValueError("Send either `rows` or `entities`")
        if parsed.rows is msgspec.UNSET:
            return Request([], [], parsed.ids, params or None, msgspec.to_builtins(entities))
        return Request(self._features.values(parsed.rows), _logged(parsed.rows), parsed.ids, params or None)

    def _decode(self, body: bytes) -> Any:
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            if not re.search(r"Expected `int`, got `float` - at `\$\.rows", str(error)):
                raise
        request = msgspec.json.decode(body)
        request["rows"] = self._features.with_whole_numbers(request["rows"])
        return msgspec.convert(request, self.kind, dec_hook=from_json)

    def arrow(self, body: bytes) -> Request:
        """The request in a body that is a stream of Arrow record batches.

        Raises:
            ValueError: as of :meth:`json`.
        """
        names = {*self._features.names, "request_id"}
        table = columns_of(body, names, most_rows=self._most_rows, most_bytes=self._most_bytes)
        rows = self._features.rows_of_table(table)
        ids = table["request_id"].to_pylist() if "request_id" in table.column_names else None
        return Request(self._features.values(rows), _logged(rows), ids)


def checked_id(client_id: Any) -> str:
    """The id that a client chose for its request, or a new UUID.

    >>> checked_id("r1")
    'r1'

    Raises:
        ValueError: A log line, a header or a reader would not have it as it is.
    """
    if client_id in (None, ""):
        return str(uuid.uuid4())
    if not isinstance(client_id, str) or not _ID.fullmatch(client_id):
        raise ValueError(
            f"request id {str(client_id)[:80]!r} is not 1 to 200 printable ASCII characters without spaces."
        )
    return client_id


def ids_of_rows(request_id: str, rows: Sequence[Any], ids: Sequence[str] | None = None) -> list[str]:
    """An id for each row: those that the client chose, else that of the request, which several rows count from 0.

    >>> ids_of_rows("r1", [{}, {}])
    ['r1/0', 'r1/1']

    Raises:
        ValueError: There are no rows, another number of ids, or one that :func:`checked_id` refuses.
    """
    if not rows:
        raise ValueError("'rows' is empty; send at least one row of features.")
    if not ids:
        return [request_id] if len(rows) == 1 else [f"{request_id}/{n}" for n in range(len(rows))]
    if len(ids) != len(rows):
        raise ValueError(f"{len(ids)} ids for {len(rows)} rows; send one id per row, or none.")
    return [checked_id(row_id) for row_id in ids]


def features_only(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows without what a client sent beside the features of the model."""
    return [{name: row[name] for name in names if name in row} for row in rows]


def _logged(rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [msgspec.to_builtins(row, enc_hook=str) for row in rows]
