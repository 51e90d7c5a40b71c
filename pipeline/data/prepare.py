"""Prepare one partition of a source: decode, check, split, write. Runs in any process; the bytes depend on it alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.data import quarantine, table
from pipeline.data.config import DataConfig
from pipeline.data.images import BadImage, convert, decode
from pipeline.data.quarantine import Entry, Expected
from pipeline.data.shape import Shape
from pipeline.data.sources.base import Partition, binary
from pipeline.data.split import SPLITS, Hashes, assign, content_hash, text_hash
from pipeline.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is the same for every partition of a source.

    Attributes:
        pixels: shape of the source's raw images; None: they are files.
        shape: of every prepared image.
        fixed: splits that the publisher fixed.
        prefix: put before every id.
    """

    config: DataConfig
    expected: Expected
    pixels: Shape | None
    shape: Shape
    fixed: tuple[str, ...]
    generation: int
    prefix: str

    @property
    def schema(self) -> pa.Schema:
        return table.schema(self.shape, len(self.expected.attributes), self.expected.embedding)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A prepared part, in numbers.

    Attributes:
        number: of the part among all.
        rows_in: rows of the partition, those put aside included.
        ids, content: hashes of the prepared rows' ids and images, uint64 [N].
        splits: int8 [N], places in SPLITS.
        histogram: int64 [C, 256], how often each value occurs in the training rows.
        digest: of the prepared rows.
    """

    number: int
    generation: int
    rows_in: int
    ids: Hashes
    content: Hashes
    splits: NDArray[np.int8]
    histogram: NDArray[np.int64]
    digest: bytes
    entries: list[Entry]


def prepare_partition(partition: Partition, number: int, recipe: Recipe, folder: Path) -> Part:
    """Write `folder`/part-NUMBER.parquet from a partition.

    Raises:
        UserError: the partition cannot be read, or gives another number of rows than it promised.
    """
    summary = _Summary(recipe)
    entries: list[Entry] = []
    rows_in = 0
    with table.PartWriter(folder / table.part_name(number), recipe.schema) as writer:
        for batch in partition.batches():
            rows_in += batch.num_rows
            checked, bad = quarantine.usable(batch, recipe.expected)
            entries += bad
            for rows in _in_groups(checked, recipe.shape):
                images, bad = _images(rows, recipe)
                entries += bad
                if bad:
                    rows = rows.filter(pc.is_valid(images))
                    images = images.drop_null()
                writer.write(summary.add(rows, images))
    if rows_in != partition.rows:
        raise UserError(
            f"data.source: expected {partition.rows:,} rows in part {number}, found {rows_in:,}: the source changed "
            "while it was read; run the same command again"
        )
    return summary.part(
        number, rows_in, writer.digest(), [entry._replace(id=_prefixed(entry.id, recipe)) for entry in entries]
    )


def rewrite_without(
    part: Part, dropped: NDArray[np.bool_], reasons: list[tuple[str, str]], recipe: Recipe, folder: Path
) -> Part:
    """Write a part again without some of its rows, which become ledger entries.

    Args:
        dropped: bool [N], the rows to put aside.
        reasons: error and detail for each of them, in order.
    """
    path = folder / table.part_name(part.number)
    summary = _Summary(recipe)
    entries, reason, start = list(part.entries), iter(reasons), 0
    temporary = path.with_suffix(".rewritten")
    with table.PartWriter(temporary, recipe.schema) as writer:
        for batch in table.read_part(path):
            here = dropped[start : start + batch.num_rows]
            start += batch.num_rows
            for row in np.flatnonzero(here).tolist():
                entries.append(Entry(batch["source"][row].as_py(), batch["id"][row].as_py(), *next(reason)))
            kept = batch.filter(pa.array(~here))
            writer.write(kept)
            summary.count(kept)
    temporary.replace(path)
    return summary.part(part.number, part.rows_in, writer.digest(), entries)


class _Summary:
    """The numbers of a part, gathered batch by batch."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._ids: list[Hashes] = [np.empty(0, np.uint64)]
        self._content: list[Hashes] = [np.empty(0, np.uint64)]
        self._splits: list[NDArray[np.int8]] = [np.empty(0, np.int8)]
        self._histogram = np.zeros((recipe.shape.channels, 256), np.int64)

    def add(self, rows: pa.RecordBatch, images: pa.Array) -> pa.RecordBatch:
        """Usable rows of a source, with their images [N], as rows of the prepared table."""
        recipe = self._recipe
        content = content_hash(table.pixels(images))
        splits = assign(rows["split"].to_pylist(), rows["group"].to_pylist(), content, recipe.config, recipe.fixed)
        columns = {
            "id": pa.array([_prefixed(name, recipe) for name in rows["id"].to_pylist()], pa.string()),
            "image": images,
            "label": rows["label"],
            "attributes": rows["attributes"] if recipe.expected.attributes else pa.nulls(len(rows)),
            "embedding": rows["embedding"] if recipe.expected.embedding else pa.nulls(len(rows)),
            "source": rows["source"],
            "split": pa.DictionaryArray.from_arrays(pa.array(splits), pa.array(SPLITS)),
            "generation": pa.array(np.full(len(rows), recipe.generation, np.int32)),
        }
        arrays = [columns[field.name].cast(field.type) for field in recipe.schema]
        batch = pa.RecordBatch.from_arrays(arrays, schema=recipe.schema)
        self._gather(batch, content, splits)
        return batch

    def count(self, batch: pa.RecordBatch) -> None:
        """Rows that already are rows of the prepared table."""
        content = content_hash(table.pixels(batch["image"]))
        splits = np.array([SPLITS.index(name) for name in batch["split"].to_pylist()], np.int8)
        self._gather(batch, content, splits)

    def part(self, number: int, rows_in: int, digest: bytes, entries: list[Entry]) -> Part:
        return Part(
            number=number,
            generation=self._recipe.generation,
            rows_in=rows_in,
            ids=np.concatenate(self._ids),
            content=np.concatenate(self._content),
            splits=np.concatenate(self._splits),
            histogram=self._histogram,
            digest=digest,
            entries=entries,
        )

    def _gather(self, batch: pa.RecordBatch, content: Hashes, splits: NDArray[np.int8]) -> None:
        self._ids.append(text_hash(batch["id"].to_pylist()))
        self._content.append(content)
        self._splits.append(splits)
        images = table.pixels(batch["image"])[splits == SPLITS.index("train")]
        for channel, counts in enumerate(self._histogram):
            counts += np.bincount(images[:, channel :: len(self._histogram)].reshape(-1), minlength=256)


def _in_groups(batch: pa.RecordBatch, shape: Shape) -> Iterator[pa.RecordBatch]:
    """Slices whose prepared images make a row group."""
    rows = max(1, table.GROUP_BYTES // shape.size)
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _images(batch: pa.RecordBatch, recipe: Recipe) -> tuple[pa.Array, list[Entry]]:
    """Fixed-size images [N], null where a row's image cannot be used, and the ledger's entries for those."""
    column, size = batch["image"], recipe.shape.size
    if recipe.pixels == recipe.shape and pc.all(pc.equal(pc.binary_length(column), size), min_count=0).as_py():
        return column.cast(pa.binary(size)), []
    out = np.zeros((len(column), size), np.uint8)
    good, entries = np.ones(len(column), bool), []
    for row, data in enumerate(column):
        try:
            out[row] = _image(data.as_buffer(), recipe)
        except BadImage as bad:
            good[row] = False
            entries.append(Entry(batch["source"][row].as_py(), batch["id"][row].as_py(), bad.error, str(bad)))
    images = binary(out).cast(pa.binary(size))
    return (images if good.all() else pc.if_else(pa.array(good), images, None)), entries


def _image(data: pa.Buffer, recipe: Recipe) -> NDArray[np.uint8]:
    """One image of the shape wanted, flat; see `images.decode` and `images.convert`."""
    if recipe.pixels is None:
        image = decode(data.to_pybytes(), recipe.config.image)
    elif data.size != recipe.pixels.size:
        height, width, channels = recipe.pixels
        expected = f"expected {recipe.pixels.size} bytes ({height} x {width} x {channels})"
        raise BadImage("image_size", f"{expected}, found {data.size}")
    else:
        image = np.frombuffer(data, np.uint8).reshape(recipe.pixels)
        image = image if recipe.pixels == recipe.shape else convert(image, recipe.config.image)
    if image.shape != recipe.shape:
        expected, found = (" x ".join(map(str, shape)) for shape in (recipe.shape, image.shape))
        remedy = "size brings all to one size" if image.shape[:2] != recipe.shape[:2] else "mode makes all gray or rgb"
        raise BadImage("image_size", f"expected {expected}, found {found}; data.image.{remedy}")
    return image.reshape(-1)


def _prefixed(name: str | None, recipe: Recipe) -> str | None:
    return None if name is None else recipe.prefix + name
