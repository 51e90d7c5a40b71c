"""Columns of images in Arrow tables: files, as Hugging Face writes them, or arrays of uint8."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import types

from pipeline.data.shape import Shape
from pipeline.data.sources.base import BATCH_BYTES, binary
from pipeline.data.sources.columns import is_bytes, missing
from pipeline.errors import UserError


class Images(NamedTuple):
    """The images of some rows.

    Attributes:
        values: binary [N].
        errors: string [N]; null where there is an image.
        details: string [N], of the errors.
    """

    values: pa.Array
    errors: pa.Array
    details: pa.Array


def check_encoded(schema: pa.Schema, name: str, where: str, instead: str) -> None:
    """The column holds image files: bytes, or {bytes, path}.

    Args:
        instead: remedy where it holds something else.

    Raises:
        UserError: there is no such column, or it holds something else.
    """
    problem = missing(schema, name)
    if problem is not None:
        raise UserError(f"data.source.image: {where}: {problem}")
    kind = schema.field(name).type
    if not is_bytes(bytes_type(kind)):
        raise UserError(
            f"data.source.image: {where}: column {name!r}: expected image files as bytes or as {{bytes, path}}, "
            f"found {kind}. {instead}"
        )


def encoded(column: pa.Array) -> Images:
    """Image files from bytes or {bytes, path}. A path alone is not followed: it leads out of the data set."""
    return _without_nulls(_bytes(column).cast(pa.binary()), column)


def encoded_lengths(column: pa.Array) -> NDArray[np.int64]:
    """Bytes of each image [N]; 0 where there is none."""
    inside = _bytes(column)
    if types.is_null(inside.type):
        return np.zeros(len(inside), np.int64)
    if types.is_dictionary(inside.type):
        known = encoded_lengths(inside.dictionary)
        places = inside.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        found: NDArray[np.int64] = np.append(known, 0)[places].astype(np.int64)
        return found
    if types.is_binary_view(inside.type) or types.is_string_view(inside.type):
        inside = inside.cast(pa.large_binary())
    lengths: NDArray[np.int64] = pc.fill_null(pc.binary_length(inside), 0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)


def check_images(schema: pa.Schema, name: str, shape: Shape | None, where: str) -> None:
    """The column holds image files where `shape` is None, else arrays of that shape.

    Raises:
        UserError: it does not.
    """
    if shape is None:
        instead = "For arrays set data.source.shape to their [height, width, channels]"
        if (index := schema.get_field_index(name)) >= 0 and types.is_string(schema.field(index).type):
            instead = "For paths of image files use kind: image_folder with this table"
        check_encoded(schema, name, where, instead)
        return
    problem = missing(schema, name) or _misfit(schema.field(name).type, shape)
    if problem is not None:
        raise UserError(f"data.source.image: {where}: {problem}")


def images_of(column: pa.Array, shape: Shape | None) -> Images:
    """Image files, or where there is a `shape`, its uint8 values; a row without them carries the error."""
    if shape is None:
        return encoded(column)
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    if types.is_fixed_size_binary(column.type) or is_bytes(column.type):
        return _without_nulls(column.cast(pa.binary()), column)
    fits, values = _exact(column, _axes(column.type, shape))
    if fits.all():
        return _without_nulls(binary(values), column)
    places = np.cumsum(fits) - 1  # of each row that fits, among those
    images = binary(values).take(pa.array(places, mask=~fits))
    found = _without_nulls(images, column)
    wrong = pc.and_(pa.array(~fits), column.is_valid())
    detail = f"expected {' x '.join(map(str, shape))} values in lists of these lengths, found others"
    return Images(images, pc.if_else(wrong, "image_size", found.errors), pc.if_else(wrong, detail, found.details))


def runs(lengths: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut rows of these lengths into (start, stop) of about BATCH_BYTES; a longer row is alone or ends a run."""
    starts = np.cumsum(lengths) - lengths
    cuts = np.flatnonzero(np.diff(starts // BATCH_BYTES)) + 1
    yield from zip([0, *cuts.tolist()], [*cuts.tolist(), len(lengths)], strict=True)


def bytes_type(kind: pa.DataType) -> pa.DataType:
    """That of the image files in a column."""
    return kind.field("bytes").type if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind


def _bytes(column: pa.Array) -> pa.Array:
    return pc.struct_field(column, "bytes") if types.is_struct(column.type) else column


def _without_nulls(values: pa.Array, column: pa.Array) -> Images:
    """`values` with an error where one is null; `column` is what they were made from."""
    none, nothing = pa.scalar(None, pa.string()), values.is_null()
    why = pc.if_else(column.is_null(), "there is no image in this row", "the bytes are not in the file, only a path")
    return Images(values, pc.if_else(nothing, "image_missing", none), pc.if_else(nothing, why, none))


def _exact(column: pa.Array, axes: Sequence[int]) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Which rows are lists of exactly these lengths without gaps [N], and the values of those [M, product of axes]."""
    if not axes:
        return column.is_valid().to_numpy(zero_copy_only=False), column.drop_null().to_numpy().reshape(-1, 1)
    fits = pc.equal(pc.list_value_length(column), axes[0]).fill_null(False).to_numpy(zero_copy_only=False).copy()
    inner_fits, values = _exact(column.filter(pa.array(fits)).flatten(), axes[1:])
    rows = inner_fits.reshape(-1, axes[0]).all(axis=1)
    if not rows.all():
        values = values[np.repeat(rows, axes[0])[inner_fits]]
    fits[fits] = rows
    return fits, values.reshape(int(rows.sum()), -1)


def _misfit(kind: pa.DataType, shape: Shape) -> str | None:
    """What is wrong with a column type that should hold arrays of `shape`; None: nothing."""
    expected = f"expected arrays of {' x '.join(map(str, shape))} uint8 values"
    if types.is_struct(kind):
        return f"{expected}, found {kind}. For image files set data.source.shape to null"
    tensor = isinstance(kind, pa.FixedShapeTensorType)
    if tensor and tuple(kind.shape) not in {tuple(shape), (shape.size,), *([shape[:2]] if shape.channels == 1 else [])}:
        return f"{expected}, found tensors of {' x '.join(map(str, kind.shape))}"
    if tensor and list(kind.permutation or range(len(kind.shape))) != [*range(len(kind.shape))]:
        return f"{expected} in this order, found permuted axes {[*kind.permutation]}"
    inner = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    if is_bytes(inner) or (types.is_fixed_size_binary(inner) and inner.byte_width == shape.size):
        return None
    sizes, leaf = _nest(inner)
    axes = _axes(inner, shape)
    if len(sizes) != len(axes) or any(size not in (None, axis) for size, axis in zip(sizes, axes, strict=True)):
        return f"{expected}, found {kind}"
    return None if types.is_uint8(leaf) else f"{expected}, found {leaf}. Convert them to uint8 from 0 to 255"


def _nest(kind: pa.DataType) -> tuple[list[int | None], pa.DataType]:
    """Lengths of nested lists, None where the type leaves it open, and the type of what they hold."""
    sizes: list[int | None] = []
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        sizes.append(kind.list_size if types.is_fixed_size_list(kind) else None)
        kind = kind.value_type
    return sizes, kind


def _axes(kind: pa.DataType, shape: Shape) -> tuple[int, ...]:
    """Lengths that lists nested like `kind` must have to hold arrays of `shape`."""
    depth = len(_nest(kind)[0])
    if depth == 2 and shape.channels == 1:
        return shape[:2]
    return tuple(shape) if depth == 3 else (shape.size,)
