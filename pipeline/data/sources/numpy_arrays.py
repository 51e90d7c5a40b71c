"""Arrays in an .npz, or in .npy files, whose rows belong together: images, and what is known of each."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import files
from pipeline.data.config import NumpySource
from pipeline.data.shape import Shape
from pipeline.data.sources.base import (
    BATCH_BYTES,
    BATCH_ROWS,
    PARTITION_BYTES,
    PARTITION_ROWS,
    Partition,
    Source,
    binary,
    first_faults,
    record_batch,
)
from pipeline.data.sources.labels import class_names, encode_labels
from pipeline.data.sources.npy import Array, open_array, unpack_npz
from pipeline.data.sources.paths import shown
from pipeline.errors import UserError

_FIELDS = ("images", "labels", "attributes", "embeddings", "groups")
_TEXT, _WHOLE, _NUMBER = "US", "iu", "iufb"  # kinds of numpy types


def open_numpy(config: NumpySource, classes: tuple[str, ...] | None, downloads: Path) -> Source:
    """The rows of arrays whose lengths agree; an image [H, W] has one channel.

    Raises:
        UserError: an array is missing, damaged, or of a type or shape that its field cannot have.
    """
    digests, arrays = _open_arrays(config, downloads)
    shape = _image_shape(arrays["images"])
    names = _attribute_names(config, arrays.get("attributes"))
    if "embeddings" in arrays:
        _check(arrays["embeddings"], _NUMBER, "numbers", 2)
    if "groups" in arrays:
        _check(arrays["groups"], _WHOLE + _TEXT, "integers or text", 1)
    _check_lengths(arrays)
    found = _classes(arrays.get("labels"), classes)
    rows, stem = arrays["images"].shape[0], shown(Path(config.path).stem)
    step = _at_most(PARTITION_ROWS, PARTITION_BYTES, arrays["images"])
    parts = [
        _Part(stem, shown(Path(config.path).name), arrays, shape, found, start, min(start + step, rows))
        for start in range(0, rows, step)
    ]
    return Source(
        name=stem,
        partitions=tuple[Partition, ...](parts),
        pixels=shape,
        classes=found,
        attributes=names,
        embedding=arrays["embeddings"].shape[1] if "embeddings" in arrays else 0,
        digests=digests,
    )


def _open_arrays(config: NumpySource, downloads: Path) -> tuple[dict[str, str], dict[str, Array]]:
    """sha256 of each file, and the array of each field that is given."""
    path = Path(config.path)
    if not path.is_file():
        raise UserError(f"data.source.path: {path}: no such file; set it to an .{config.kind} file")
    given = {field: getattr(config, field) for field in _FIELDS if getattr(config, field) is not None}
    if config.kind == "npz":
        wanted = {f"data.source.{field}": name for field, name in given.items()}
        digest, found = unpack_npz(path, wanted, downloads)
        return {shown(path.name): digest}, {field: found[f"data.source.{field}"] for field in given}
    given["images"] = path.name
    arrays = {}
    for field, name in given.items():
        key = "path" if field == "images" else field
        if not (path.parent / name).is_file():
            raise UserError(f"data.source.{key}: {path.parent / name}: no such file; name an .npy file")
        arrays[field] = open_array(f"data.source.{key}: {path.parent / name}", path.parent / name)
    return {shown(name): files.sha256(path.parent / name) for name in given.values()}, arrays


def _image_shape(images: Array) -> Shape:
    shape, where = images.shape, images.where
    if images.dtype.kind not in "bf" and images.dtype != np.uint8:
        raise UserError(f"{where}: expected images of uint8, bool or floating type, found {images.dtype}; convert them")
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] > 4:
        raise UserError(
            f"{where}: expected [N, H, W, C], found {list(shape)}, which looks like [N, C, H, W]; "
            "save images.transpose(0, 2, 3, 1)"
        )
    if len(shape) not in (3, 4) or 0 in shape or (len(shape) == 4 and shape[3] > 4):
        raise UserError(f"{where}: expected [N, H, W] or [N, H, W, C] with C from 1 to 4, found {list(shape)}")
    return Shape(shape[1], shape[2], shape[3] if len(shape) == 4 else 1)


def _check(array: Array, kinds: str, words: str, axes: int) -> None:
    wanted = "[N]" if axes == 1 else "[N, length]"
    if array.dtype.kind not in kinds or len(array.shape) != axes or 0 in array.shape:
        raise UserError(f"{array.where}: expected {words} {wanted}, found {array.dtype} {list(array.shape)}")


def _check_lengths(arrays: Mapping[str, Array]) -> None:
    images = arrays["images"]
    for array in arrays.values():
        if array.shape[0] != images.shape[0]:
            raise UserError(
                f"{array.where}: expected {images.shape[0]:,} rows, as many as {images.where}, found "
                f"{array.shape[0]:,}; save arrays of the same rows"
            )


def _attribute_names(config: NumpySource, array: Array | None) -> tuple[str, ...]:
    if array is None:
        if config.attribute_names:
            raise UserError("data.source.attribute_names: names without an array; set data.source.attributes too")
        return ()
    _check(array, _NUMBER, "numbers", min(max(len(array.shape), 1), 2))
    count = array.shape[1] if len(array.shape) == 2 else 1
    names = config.attribute_names or tuple(f"attribute_{number}" for number in range(count))
    if len(names) != count or len(set(names)) != count:
        raise UserError(
            f"data.source.attribute_names: expected {count} different names, one for each column of {array.where}, "
            f"found {', '.join(names)}"
        )
    return names


def _classes(labels: Array | None, given: tuple[str, ...] | None) -> tuple[str, ...]:
    if labels is None:
        return ()
    _check(labels, _WHOLE + _TEXT, "integers or text", 1)
    if given is not None:
        return given
    values, counts = np.unique(labels.map(), return_counts=True)
    found = dict(zip(_plain(values, labels), counts.tolist(), strict=True))
    return class_names(found, None, labels.where, "name an array of such numbers as data.source.attributes instead")


def _plain(values: NDArray[Any], array: Array) -> list[Any]:
    """Integers and texts of an array as Python has them; the empty text, which numpy has for a missing one, as None."""
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "backslashreplace")
    elif values.dtype.kind == "U" and values.dtype.itemsize:
        codes = np.ascontiguousarray(values, values.dtype.newbyteorder("=")).view(np.uint32)
        if ((codes > 0x10FFFF) | (codes >> 11 == 0xD800 >> 11)).any():
            raise UserError(f"{array.where}: expected text, found what is not Unicode; save it again")
    return [None if value == "" else value for value in values.tolist()]


def _at_most(rows: int, num_bytes: int, images: Array) -> int:
    """How many rows take no more than that, in the type in which they are stored."""
    return max(1, min(rows, num_bytes // (math.prod(images.shape[1:]) * images.dtype.itemsize)))


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows `start` to before `stop` of arrays of the same length."""

    name: str
    source: str
    arrays: Mapping[str, Array]
    shape: Shape
    classes: tuple[str, ...]
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def batches(self) -> Iterator[pa.RecordBatch]:
        maps = {field: array.map() for field, array in self.arrays.items()}
        step = _at_most(BATCH_ROWS, BATCH_BYTES, self.arrays["images"])
        for start in range(self.start, self.stop, step):
            stop = min(start + step, self.stop)
            yield self._batch(start, {field: np.asarray(array[start:stop]) for field, array in maps.items()})

    def _batch(self, start: int, values: Mapping[str, NDArray[Any]]) -> pa.RecordBatch:
        images, details = to_uint8(values["images"])
        errors = pa.array(["pixel_range" if detail else None for detail in details], pa.string())
        faults: list[tuple[Any, Any]] = [(errors, details)]
        columns: dict[str, Any] = {"source": self.source}
        if "labels" in values:
            codes = encode_labels(_plain(values["labels"], self.arrays["labels"]), self.classes)
            columns["label"] = codes.labels
            faults.append((codes.errors, codes.details))
        if "attributes" in values:
            columns["attributes"] = values["attributes"].reshape(len(images), -1)
        if "embeddings" in values:
            columns["embedding"] = values["embeddings"]
        if "groups" in values:
            groups = _plain(values["groups"], self.arrays["groups"])
            columns["group"] = [None if group is None else str(group) for group in groups]
        ids = [f"{self.name}-{row:06d}" for row in range(start, start + len(images))]
        column = (
            binary(images) if errors.null_count == len(images) else pc.if_else(errors.is_null(), binary(images), None)
        )
        return record_batch(ids, column, **columns, **first_faults(*faults))


def to_uint8(values: NDArray[Any]) -> tuple[NDArray[np.uint8], list[str | None]]:
    """Pixels of images [N, ...], and for each image why it has none, or None.

    uint8 stays; false and true become 0 and 255; a number x from 0 to 1 becomes round(255 x).
    """
    if values.dtype == np.uint8:
        return values, [None] * len(values)
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255), [None] * len(values)
    numbers = values if values.dtype.itemsize >= 4 else values.astype(np.float32)
    axes = tuple(range(1, numbers.ndim))
    low, high = numbers.min(axis=axes), numbers.max(axis=axes)  # NaN where a value is
    bad = ~((low >= 0) & (high <= 1))
    details: list[str | None] = [None] * len(values)
    for row in np.flatnonzero(bad):
        details[row] = f"expected values from 0 to 1, found from {low[row]:g} to {high[row]:g}"
    usable = np.where(bad.reshape(-1, *[1] * len(axes)), 0, numbers) if bad.any() else numbers
    return np.rint(usable * 255).astype(np.uint8), details
