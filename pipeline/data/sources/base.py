"""What every source of images offers: a few facts, and its rows as Arrow record batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data.shape import Shape

ROWS = pa.schema(
    {
        "id": pa.string(),  # stable: the same row has the same id in every version of the source
        "image": pa.binary(),  # uint8 [H, W, C] in C order
        "label": pa.int64(),  # null where there are no classes
        "source": pa.string(),  # the file or object that the row came from
        "split": pa.string(),  # "train" or "test" where the publisher says so, else null
    }
)

BATCH_ROWS = 8192


class Source(Protocol):
    """Images of one shape, verified as far as the source has digests, unchecked row by row.

    Attributes:
        name: short name of the data set.
        shape: what every image should measure; a row that does not is quarantined by `ingest`.
        classes: name of each label from 0; empty where the rows have no labels.
        digests: name of each file -> sha256 of its content after decompression.
        rows: how many rows `batches` will give.
    """

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def digests(self) -> dict[str, str]: ...
    @property
    def rows(self) -> int: ...

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Every row once, in an order that never changes, with the columns of `ROWS`."""
        ...


class Rows(NamedTuple):
    """Rows held as arrays.

    Attributes:
        images: uint8 [N, ...], the values of an image in the order H, W, C.
        labels: integers [N].
        prefix: ids are this and the row's number.
        source: the file or object that all of them came from.
        split: "train", "test" or None, the same for all.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.integer]
    prefix: str
    source: str
    split: str | None

    def batches(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(self.images), BATCH_ROWS):
            images = self.images[start : start + BATCH_ROWS]
            count = len(images)
            columns = [
                pa.array([f"{self.prefix}-{row:06d}" for row in range(start, start + count)]),
                _binary(images),
                pa.array(self.labels[start : start + count].astype(np.int64)),
                pa.array([self.source] * count),
                pa.array([self.split] * count, pa.string()),
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=ROWS)


@dataclass(frozen=True, slots=True)
class ArraySource:
    """A `Source` that fits in memory."""

    name: str
    shape: Shape
    classes: tuple[str, ...]
    digests: dict[str, str]
    tables: tuple[Rows, ...]

    @property
    def rows(self) -> int:
        return sum(len(table.images) for table in self.tables)

    def batches(self) -> Iterator[pa.RecordBatch]:
        for table in self.tables:
            yield from table.batches()


def _binary(images: NDArray[np.uint8]) -> pa.Array:
    """uint8 [N, ...] -> Arrow binary [N], sharing the memory."""
    offsets = np.arange(0, images.size + 1, images[0].size, dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(images))]
    return pa.BinaryArray.from_buffers(pa.binary(), len(images), buffers)
