"""The prepared table: Parquet parts of checked rows, each with its split, in the order of the source."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.data.shape import Shape
from pipeline.errors import UserError

GROUP_BYTES = 16 * 1024**2  # of pixels in a row group
_DIGESTED = ("id", "image", "label", "attributes", "embedding", "split", "generation")


def schema(shape: Shape, attributes: int, embedding: int) -> pa.Schema:
    """Columns of the prepared table; attributes and embedding are the lengths of these vectors."""
    return pa.schema(
        {
            "id": pa.string(),
            "image": pa.binary(shape.size),  # uint8 [H, W, C] in C order
            "label": pa.int64(),
            "attributes": pa.list_(pa.float32(), attributes) if attributes else pa.null(),
            "embedding": pa.list_(pa.float32(), embedding) if embedding else pa.null(),
            "source": pa.string(),
            "split": pa.string(),
            "generation": pa.int32(),  # 0: of data.source; n: of the n-th entry of data.append
        }
    )


def part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def pixels(column: pa.Array) -> NDArray[np.uint8]:
    """Fixed-size binary [N] -> uint8 [N, bytes], sharing the memory (read-only)."""
    width = column.type.byte_width
    flat = np.frombuffer(column.buffers()[1] or b"", np.uint8)
    return flat[column.offset * width : (column.offset + len(column)) * width].reshape(len(column), width)


class PartWriter:
    """Writes one part, a row group for each batch; its digest is of the rows, however they are cut into batches."""

    def __init__(self, path: Path, columns: pa.Schema) -> None:
        self._hashes = {name: hashlib.sha256() for name in _DIGESTED}
        self._writer = pq.ParquetWriter(
            path,
            columns,
            compression="zstd",
            use_dictionary=["source", "split"],
            write_statistics=["id", "label", "split"],
            write_page_checksum=True,
        )

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows == 0:
            return
        self._writer.write_batch(batch, row_group_size=batch.num_rows)
        for name, digest in self._hashes.items():
            digest.update(_canonical(batch[name]))

    def digest(self) -> bytes:
        return hashlib.sha256(b"".join(digest.digest() for digest in self._hashes.values())).digest()


def _canonical(column: pa.Array) -> bytes:
    """Bytes that depend on the values alone."""
    kind = column.type
    if pa.types.is_null(kind):
        return b""
    if pa.types.is_fixed_size_binary(kind):
        return pixels(column).tobytes()
    if pa.types.is_string(kind):
        return "".join(f"{len(text)}:{text}" for text in column.to_pylist()).encode("utf-8", "surrogatepass")
    if pa.types.is_fixed_size_list(kind):
        return bytes(column.flatten().to_numpy().astype("<f4"))
    return bytes(column.fill_null(-1).to_numpy())


def read(folder: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of every part in order, a row group at a time.

    Raises:
        UserError: a part is damaged.
    """
    for path in sorted(folder.glob("part-*.parquet")):
        yield from read_part(path, columns)


def read_part(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a part, a row group at a time; every column unless some are named.

    Raises:
        UserError: it is damaged.
    """
    wanted = list(columns) if columns is not None else None
    with _opened(path) as file:
        for group in range(file.num_row_groups):
            for batch in file.read_row_group(group, wanted, use_threads=False).combine_chunks().to_batches():
                batch.validate(full=True)  # Arrow believes offsets and text as they stand in the file
                yield batch


def check_columns(path: Path, expected: pa.Schema) -> None:
    """Raises UserError: a part is damaged, or has other columns or types."""
    with _opened(path) as file:
        for field in expected:
            if field.name not in file.schema_arrow.names or file.schema_arrow.field(field.name).type != field.type:
                raise UserError(
                    f"{path}: expected a column {field.name!r} of {field.type}, as dataset.json says; "
                    "run `dvc repro -f ingest`"
                )


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Turn what Arrow raises for a damaged part into a UserError that names it."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: damaged ({reason}); run `dvc repro -f ingest`") from None
