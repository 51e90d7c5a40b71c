"""Columns of Arrow tables from foreign files: their types, their values, and whether they can be believed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import types

from pipeline.data.sources.paths import shown
from pipeline.errors import UserError, did_you_mean


def missing(schema: pa.Schema, name: str) -> str | None:
    """What is wrong where `schema` has no column `name`, or more than one; else None."""
    found = schema.names.count(name)
    if found > 1:
        return f"column {name!r} is there {found} times"
    return None if found else f"no column {name!r}{did_you_mean(name, schema.names)}"


def sound(rows: pa.RecordBatch | pa.Schema) -> Any:
    """`rows` once they are known to be safe to use: Arrow's readers believe offsets and text as they stand in a file.

    Raises:
        pa.ArrowException, UnicodeDecodeError: they are damaged.
    """
    if isinstance(rows, pa.Schema):
        [str(part) for part in (*rows.names, *rows.types)]  # decodes them
    else:
        rows.validate(full=True)
    return rows


@contextmanager
def whole(path: Path | str, kind: str) -> Iterator[None]:
    """Turn what Arrow raises for a damaged, vanished, locked or replaced file into a UserError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError, KeyError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        remedy = "Put a whole copy in its place, or take it away"
        raise UserError(f"{shown(str(path))}: cannot be read as {kind} ({reason}). {remedy}") from None


def plain(column: pa.Array) -> pa.Array:
    """`column` without dictionary, extension type or view; nothing but nulls becomes text."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if types.is_null(column.type) or types.is_string_view(column.type):
        return column.cast(pa.string())
    return column


def distinct(column: pa.Array) -> pa.DictionaryArray:
    """`column` as `plain` has it, each value once and the places of each."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column if isinstance(column, pa.DictionaryArray) else plain(column).dictionary_encode()


def numbers(column: pa.Array) -> NDArray[np.float32]:
    """float32 [N], NaN where there is none."""
    values = plain(column).cast(pa.float32(), safe=False)  # whole numbers beyond 2**24 are rounded
    out: NDArray[np.float32] = pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False)
    return out


def vectors(column: pa.Array) -> pa.Array:
    """Lists of float32 [N]; NaN where a number is missing."""
    lists = plain(column).cast(pa.list_(pa.float32()), safe=False)
    if lists.flatten().null_count == 0:
        return lists
    filled = [row and [np.nan if number is None else number for number in row] for row in lists.to_pylist()]
    return pa.array(filled, pa.list_(pa.float32()))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """That of `plain`."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind.value_type if types.is_dictionary(kind) else kind


def is_bytes(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def is_text(kind: pa.DataType) -> bool:
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(texts or types.is_null(kind))


def is_number(kind: pa.DataType) -> bool:
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)
    return bool(number)


def is_label(kind: pa.DataType) -> bool:
    return is_text(kind) or is_number(kind)


def is_vector(kind: pa.DataType) -> bool:
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(lists and (types.is_integer(kind.value_type) or types.is_floating(kind.value_type)))
