"""Columns of an Arrow stream that a stranger sent: read only if they are about as large as the body says.

Arrow's format lets a few kilobytes stand for any number of gigabytes: by compression, by values that take no bytes, and
by many rows that point at one value.
"""

import struct
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


def columns_of(body: bytes, names: Collection[str], *, most_rows: int, most_bytes: int) -> "pa.Table":
    """The named columns of a stream of record batches, as far as it has them.

    Raises:
        ValueError: it is not one, it is compressed, or it has more rows, bytes or values than are allowed.
    """
    import pyarrow as pa

    try:
        for message in pa.ipc.MessageReader.open_stream(body):
            if _is_compressed(message.metadata.to_pybytes()):
                raise ValueError("the record batches must not be compressed")
        table = pa.ipc.open_stream(body).read_all()
        if not 0 < table.num_rows <= most_rows:
            raise ValueError(f"there are {table.num_rows:,} rows; send 1 to {most_rows:,}.")
        table = table.select([name for name in table.column_names if name in names])
        table.validate(full=True)
        left = most_bytes
        for number, column in enumerate(table.columns):
            chunks = []
            for chunk in column.chunks:
                plain = _plain(chunk, left)
                left -= max(plain.nbytes, _values(plain))
                if left < 0:
                    raise ValueError(f"the rows have more than {most_bytes:,} bytes")
                chunks.append(plain)
            table = table.set_column(number, table.column_names[number], pa.chunked_array(chunks))
    except (pa.ArrowException, OSError, struct.error, IndexError) as error:
        raise ValueError(f"the body is not a stream of Arrow record batches: {error}") from None
    return table


def _plain(array: Any, most_bytes: int) -> Any:
    """The array without a dictionary, which may stand for one long value in each row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(array.type):
        return array
    if _is_text(array.dictionary.type):
        size = pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py()  # pyright: ignore[reportAttributeAccessIssue] - made at run time
        if (size or 0) > most_bytes:
            raise ValueError(f"the rows have more than {most_bytes:,} bytes")
    elif not pa.types.is_primitive(array.dictionary.type):
        raise ValueError(f"the type {array.type} is not supported")
    return array.dictionary_decode()


def _values(array: Any) -> int:
    """Number of values, those of all levels."""
    import pyarrow as pa

    kind, types = array.type, pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return len(array) + _values(array.flatten())
    if types.is_map(kind):
        return len(array) + _values(array.keys) + _values(array.items)
    if types.is_struct(kind):
        return len(array) + sum(map(_values, array.flatten()))
    if not (types.is_primitive(kind) or types.is_null(kind) or types.is_decimal(kind) or _is_text(kind)):
        raise ValueError(f"the type {kind} is not supported")
    return len(array)


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    types = pa.types
    return any(
        test(kind)
        for test in (
            types.is_string,
            types.is_large_string,
            types.is_binary,
            types.is_large_binary,
            types.is_fixed_size_binary,
        )
    )


def _is_compressed(message: bytes) -> bool:
    """True for a batch that names a compression, in the flatbuffer of its message.

    pyarrow decompresses a whole batch without a limit, and does not say before that it will.
    """
    root = _pointer(message, 0)
    kind, header = _field(message, root, 1), _field(message, root, 2)
    if not kind or not header or message[kind] not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return False
    batch = _pointer(message, header)
    if message[kind] == _DICTIONARY_BATCH:
        batch = _pointer(message, _field(message, batch, 1))
    return bool(_field(message, batch, 3))


def _field(message: bytes, table: int, slot: int) -> int:
    """The place of a field of a table; 0 without it."""
    fields = table - struct.unpack_from("<i", message, table)[0]
    [size] = struct.unpack_from("<H", message, fields)
    place = 4 + 2 * slot
    [offset] = struct.unpack_from("<H", message, fields + place) if place + 2 <= size else [0]
    return table + offset if offset else 0


def _pointer(message: bytes, place: int) -> int:
    return place + struct.unpack_from("<I", message, place)[0]
