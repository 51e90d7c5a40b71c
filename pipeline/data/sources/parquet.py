"""Parquet files: image files in a column, as Hugging Face writes them, or fixed-size arrays of uint8."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.data.config import ParquetSource
from pipeline.data.shape import Shape
from pipeline.data.sources import tables
from pipeline.data.sources.base import BATCH_BYTES, BATCH_ROWS, Source
from pipeline.data.sources.columns import is_bytes, is_text, plain_type, sound, whole
from pipeline.data.sources.image_columns import bytes_type, check_images, encoded_lengths, images_of, runs
from pipeline.data.sources.paths import find_files
from pipeline.data.sources.splits import HUB_FILE, official, splits_of_files
from pipeline.errors import UserError

ENCODED_ROWS = 256  # at once: equal images are stored once, so the file does not say how long they are when decoded
BUFFER_BYTES = 1024**2  # of the file, a column


def open_parquet(config: ParquetSource, classes: tuple[str, ...] | None) -> Source:
    """The rows of one file, of all *.parquet below a folder, or of those that a pattern matches, in the order of names.

    Raises:
        UserError: there are none, one is damaged or differs from the others, or a column is not what `config` says.
    """
    shape = None if config.shape is None else Shape(*config.shape)
    if shape is not None and not (min(shape) >= 1 and shape.size <= BATCH_BYTES):
        raise UserError(
            f"data.source.shape: expected [height, width, channels], each at least 1, together at most {BATCH_BYTES:,} "
            f"values; found {[*shape]}"
        )
    title, found = find_files(config.path, (".parquet",), "Parquet files")
    files = {name: _inspect(path) for name, path in found.items()}
    first, schema = next((name, file.schema) for name, file in files.items())
    check_images(schema, config.image, shape, first)
    tables.check_columns(config.columns, schema, first)
    used, label = tables.used(config.columns, config.image), config.columns.label
    names = _label_names(schema, label)
    for name, file in files.items():
        tables.check_alike(file.schema, name, schema, first, used)
        tables.check_names(_label_names(file.schema, label), name, names, first)
    if not any(file.metadata.num_rows for file in files.values()):
        raise UserError(f"data.source.path: {config.path}: no rows in {len(files):,} Parquet files; name others")
    meaning = tables.learn(config.columns, classes, schema, _Scan(tuple(files.values())), config.path, names)
    splits = splits_of_files(files, HUB_FILE, config.path) if config.columns.split is None else {}
    reading = _Reading(config.image, shape, used, meaning)
    partitions = tuple(part for name, file in files.items() for part in _cut(name, file, splits.get(name), reading))
    return Source(
        name=title,
        partitions=partitions,
        pixels=shape,
        classes=meaning.classes,
        attributes=config.columns.attributes,
        embedding=meaning.embedding,
        digests={name: _footer_digest(found[name]) for name, file in files.items()},
        official=meaning.official or official(splits.values()),
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a partition must know of the source."""

    image: str
    shape: Shape | None
    used: tuple[str, ...]
    meaning: tables.Meaning


@dataclass(frozen=True, slots=True)
class _File:
    """`path` is absolute; `where` is the path as the user gave it, for messages."""

    path: str
    where: str
    metadata: pq.FileMetaData
    schema: pa.Schema


@dataclass(frozen=True, slots=True)
class _Scan:
    """Reads single columns of all files."""

    files: tuple[_File, ...]

    def __call__(self, column: str) -> Iterator[pa.Array]:
        for file in self.files:
            with whole(file.where, "Parquet"), _compact(file.path) as parquet:
                for batch in parquet.iter_batches(BATCH_ROWS, columns=[column]):
                    yield sound(batch).column(column)


@dataclass(frozen=True, slots=True)
class ParquetPart:
    """Some whole row groups of one file.

    Attributes:
        where: the file as the user gave it, for messages.
        name: of the file, in ids.
        split: of every row, where the names of the files tell it.
        first_row: number in the file of the first row.
        batch_rows: how many rows may be decoded at once.
    """

    path: str
    where: str
    name: str
    split: str | None
    groups: tuple[int, ...]
    first_row: int
    rows: int
    batch_rows: int
    reading: _Reading

    def batches(self) -> Iterator[pa.RecordBatch]:
        row, reading = self.first_row, self.reading
        with whole(self.where, "Parquet"), _compact(self.path) as file:
            if max(self.groups) >= file.num_row_groups:
                raise UserError(f"{self.where}: changed while it was read. Start again")
            for batch in file.iter_batches(self.batch_rows, row_groups=[*self.groups], columns=[*reading.used]):
                sound(batch)
                for start, stop in runs(_lengths(batch, reading)):
                    part = batch.slice(start, stop - start)
                    images = images_of(part.column(reading.image), reading.shape)
                    ids = (f"{self.name}:{number}" for number in range(row + start, row + stop))
                    yield tables.row_batch(part, images, reading.meaning, ids, source=self.name, split=self.split)
                row += batch.num_rows
        if row - self.first_row != self.rows:
            raise UserError(f"{self.where}: expected {self.rows:,} rows, found {row - self.first_row:,}. Start again")


def _opened(path: str | Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, buffer_size=BUFFER_BYTES, page_checksum_verification=True)


def _compact(path: str | Path) -> pq.ParquetFile:
    """Opened so that a text or image is once in memory, however many rows share it: a small file can say so often."""
    with _opened(path) as file:
        columns = [file.schema.column(number) for number in range(len(file.schema))]
        shared = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        return pq.ParquetFile(
            path, buffer_size=BUFFER_BYTES, page_checksum_verification=True, read_dictionary=shared,
            metadata=file.metadata,
        )  # fmt: skip


def _inspect(path: Path) -> _File:
    with whole(path, "Parquet"), _opened(path) as file:
        metadata = file.metadata
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if sum(counts) != metadata.num_rows or min(counts, default=0) < 0:
            raise pa.ArrowInvalid("the numbers of rows in its footer contradict each other")
        return _File(str(path.absolute()), str(path), metadata, sound(file.schema_arrow))


def _label_names(schema: pa.Schema, label: str | None) -> tuple[str, ...] | None:
    """Class names of the numbers in the label column, where Hugging Face wrote them into the file."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return tables.feature_names(info["info"]["features"], label)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _cut(name: str, file: _File, split: str | None, reading: _Reading) -> Iterator[ParquetPart]:
    """Whole row groups, together at most PARTITION_ROWS and PARTITION_BYTES; a larger group is alone."""
    counts = [_group_size(file.metadata.row_group(group), reading) for group in range(file.metadata.num_row_groups)]
    batch_rows = _batch_rows(counts, reading)
    row = 0
    for first, stop in tables.together(counts):
        rows = sum(count for count, _ in counts[first:stop])
        if rows:
            groups = tuple(range(first, stop))
            yield ParquetPart(file.path, file.where, name, split, groups, row, rows, batch_rows, reading)
        row += rows


def _batch_rows(counts: list[tuple[int, int]], reading: _Reading) -> int:
    """How many rows are about BATCH_BYTES."""
    longest = max((size // rows for rows, size in counts if rows), default=0)
    limit = ENCODED_ROWS if reading.shape is None else BATCH_ROWS
    return min(limit, max(1, BATCH_BYTES // max(1, longest)))


def _group_size(group: pq.RowGroupMetaData, reading: _Reading) -> tuple[int, int]:
    """Rows, and about how many bytes they are: of all columns, because facts of one column are not safe to ask for
    where the footer is damaged.
    """
    size = group.total_byte_size if reading.shape is None else group.num_rows * reading.shape.size
    return group.num_rows, max(size, 0)


def _lengths(batch: pa.RecordBatch, reading: _Reading) -> NDArray[np.int64]:
    """Bytes of each row [N], but for its numbers."""
    out = np.full(len(batch), 0 if reading.shape is None else reading.shape.size, np.int64)
    for name in reading.used:
        column = batch.column(name)
        if is_bytes(plain_type(bytes_type(column.type))) or is_text(plain_type(column.type)):
            out += encoded_lengths(column)
    return out


def _footer_digest(path: Path) -> str:
    """sha256 of the file's length and its footer, which holds the place, length and range of every column."""
    with whole(path, "Parquet"), path.open("rb") as file:
        size = file.seek(-8, 2) + 8
        footer = int.from_bytes(file.read(4), "little") + 8
        file.seek(-min(footer, size), 2)
        return hashlib.sha256(size.to_bytes(8, "little") + file.read()).hexdigest()
