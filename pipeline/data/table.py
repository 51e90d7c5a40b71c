"""The prepared table: Parquet parts of checked rows, each with its split, in the order of the source."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.data.shape import Shape
from pipeline.errors import UserError

PART_BYTES = 256 * 1024**2  # of pixels, before compression


def schema(shape: Shape) -> pa.Schema:
    return pa.schema(
        {
            "id": pa.string(),
            "image": pa.binary(shape.size),  # uint8 [H, W, C] in C order
            "label": pa.int64(),
            "attributes": pa.null(),  # a fixed-size list of float32 in a data set that has attributes
            "source": pa.string(),
            "split": pa.string(),
        }
    )


def prepared(batch: pa.RecordBatch, splits: NDArray[np.str_], shape: Shape) -> pa.RecordBatch:
    """A source's usable rows with the columns of `schema`."""
    columns = [
        batch["id"],
        batch["image"].cast(pa.binary(shape.size)),
        batch["label"],
        pa.nulls(batch.num_rows),
        batch["source"],
        pa.array(splits.tolist(), pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema(shape))


def pixels(column: pa.Array) -> NDArray[np.uint8]:
    """Fixed-size binary [N] -> uint8 [N, bytes], sharing the memory (read-only)."""
    width = column.type.byte_width
    flat = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    return flat[column.offset * width : (column.offset + len(column)) * width].reshape(len(column), width)


class Parts:
    """Writes part-00000.parquet, part-00001.parquet, ... into a folder; a row group for each batch."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self._folder, self._shape = folder, shape
        self._count = self._bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows == 0:
            return
        if self._writer is None or self._bytes >= PART_BYTES:
            self._next()
        assert self._writer is not None
        self._writer.write_batch(batch, row_group_size=batch.num_rows)
        self._bytes += batch.num_rows * self._shape.size

    def _next(self) -> None:
        self.__exit__()
        path = self._folder / f"part-{self._count:05d}.parquet"
        self._writer = pq.ParquetWriter(
            path,
            schema(self._shape),
            compression="zstd",
            use_dictionary=["source", "split"],
            write_statistics=["id", "label", "split"],
            write_page_checksum=True,
        )
        self._count, self._bytes = self._count + 1, 0


class ContentDigest:
    """SHA-256 of rows in order, whatever batches and files they are cut into."""

    _COLUMNS = ("id", "image", "label", "split")

    def __init__(self, shape: Shape, classes: tuple[str, ...]) -> None:
        self._head = json.dumps([list(shape), list(classes)]).encode()
        self._hashes = {name: hashlib.sha256() for name in self._COLUMNS}

    def update(self, batch: pa.RecordBatch) -> None:
        for name in ("id", "split"):
            self._hashes[name].update("".join(f"{len(text)}:{text}" for text in batch[name].to_pylist()).encode())
        self._hashes["image"].update(pixels(batch["image"]).data)
        self._hashes["label"].update(batch["label"].fill_null(-1).to_numpy().data)

    def hexdigest(self) -> str:
        parts = [self._hashes[name].digest() for name in self._COLUMNS]
        return hashlib.sha256(b"".join([self._head, *parts])).hexdigest()


def read(folder: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of every part in order, a row group at a time.

    Raises:
        UserError: a part is damaged.
    """
    for path in sorted(folder.glob("part-*.parquet")):
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    yield from file.read_row_group(group, columns).combine_chunks().to_batches()
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: damaged ({str(error).splitlines()[0]}); run `dvc repro -f ingest`") from None
