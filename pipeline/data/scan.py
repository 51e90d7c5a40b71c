"""One pass over the rows of a data set, a part of them in memory at a time: counts, extremes, some images."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.data import table
from pipeline.data.shape import Shape
from pipeline.data.split import SPLITS
from pipeline.data.split_reader import Split

SHOWN_CLASSES = 20
ROWS_WITHOUT_CLASSES = 8  # of as many images as else show one class
THUMBNAIL = 128  # pixels: larger images are kept smaller, so that the memory has a limit

TRAIN = SPLITS.index("train")


class Chunk(NamedTuple):
    """Some rows: places in SPLITS [n], labels [n] (0 without classes), attributes [n, A], images uint8 [n, H, W, C]."""

    splits: NDArray[np.int64]
    labels: NDArray[np.int64]
    attributes: NDArray[np.float32]
    images: NDArray[np.uint8] | None


Chunks: TypeAlias = Callable[[bool], Iterator[Chunk]]  # the rows in order, with their images or without


class Tally(NamedTuple):
    """Rows of each split and class, int64 [splits, classes]; of each attribute [A] the lowest, the sum, the highest."""

    labels: NDArray[np.int64]
    low: NDArray[np.float64]
    total: NDArray[np.float64]
    high: NDArray[np.float64]


class Look(NamedTuple):
    """What the pixels say: constant images; lowest and highest value of each channel over the training rows."""

    constant: int
    low: list[int]
    high: list[int]
    examples: tuple[NDArray[np.uint8], ...]


def prepared_chunks(folder: Path, shape: Shape, attributes: int) -> Chunks:
    """The rows of a prepared table, a row group at a time."""

    def chunks(images: bool) -> Iterator[Chunk]:
        columns = ["split", "label", *(["attributes"] if attributes else []), *(["image"] if images else [])]
        for batch in table.read(folder, columns):
            splits = np.array([SPLITS.index(name) for name in batch["split"].to_pylist()], np.int64)
            values = batch["attributes"].flatten().to_numpy() if attributes else np.empty(0, np.float32)
            yield Chunk(
                splits,
                batch["label"].fill_null(0).to_numpy(),
                values.reshape(len(splits), attributes),
                table.pixels(batch["image"]).reshape(-1, *shape) if images else None,
            )

    return chunks


def shard_chunks(splits: Mapping[str, Split]) -> Chunks:
    """The rows of each split of the shards."""

    def chunks(images: bool) -> Iterator[Chunk]:
        for name, split in splits.items():
            step = max(1, table.GROUP_BYTES // split.manifest.shape.size)
            for start in range(0, len(split), step):
                rows = np.arange(start, min(start + step, len(split)), dtype=np.int64)
                labels, attributes = split.labels(rows), split.attributes(rows)
                yield Chunk(
                    np.full(len(rows), SPLITS.index(name), np.int64),
                    np.zeros(len(rows), np.int64) if labels is None else labels,
                    np.empty((len(rows), 0), np.float32) if attributes is None else attributes,
                    split.images(rows) if images else None,
                )

    return chunks


def tally(chunks: Iterator[Chunk], classes: int, attributes: int) -> Tally:
    """Count the rows; their images are not read."""
    columns = max(1, classes)
    labels = np.zeros(len(SPLITS) * columns, np.int64)
    low, total, high = np.full(attributes, np.inf), np.zeros(attributes), np.full(attributes, -np.inf)
    for chunk in chunks:
        labels += np.bincount(chunk.splits * columns + chunk.labels, minlength=len(labels))
        low = np.minimum(low, chunk.attributes.min(0, initial=np.inf))
        high = np.maximum(high, chunk.attributes.max(0, initial=-np.inf))
        total = total + chunk.attributes.sum(0, dtype=np.float64)
    return Tally(labels.reshape(len(SPLITS), columns), low, total, high)


def look(chunks: Iterator[Chunk], rows: NDArray[np.int64], images: int) -> Look:
    """Read all pixels. `rows`: training rows of each class, over which its `images` examples are spread evenly."""
    shown = [min(images, count) for count in rows[:SHOWN_CLASSES].tolist()]
    wanted = [np.arange(n) * count // max(1, n) for n, count in zip(shown, rows.tolist(), strict=False)]
    seen = np.zeros(len(wanted), np.int64)
    kept: list[list[NDArray[np.uint8]]] = [[] for _ in wanted]
    constant, low, high = 0, [255], [0]
    for chunk in chunks:
        assert chunk.images is not None
        lowest, highest = _extremes(chunk.images)
        constant += int((lowest == highest).all(1).sum())
        train = chunk.splits == TRAIN
        low = np.minimum(low, lowest[train].min(0, initial=255)).tolist()
        high = np.maximum(high, highest[train].max(0, initial=0)).tolist()
        for label, places in enumerate(wanted):
            here = np.flatnonzero(train & (chunk.labels == label))
            kept[label].append(thumbnails(chunk.images[here[_within(places, seen[label], len(here))]]))
            seen[label] += len(here)
    return Look(constant, low, high, tuple(np.concatenate(parts) for parts in kept))


def _within(places: NDArray[np.int64], start: int, count: int) -> NDArray[np.int64]:
    """Those of `places` that lie among `count` from `start` on, counted from there."""
    return places[(places >= start) & (places < start + count)] - start


def _extremes(images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Lowest and highest value of each image and channel, [n, C] each."""
    flat = images.reshape(len(images), -1, images.shape[-1])
    channels = range(flat.shape[-1])  # one at a time: numpy is slow along an axis that is not the last
    return np.stack([flat[:, :, c].min(1) for c in channels], 1), np.stack([flat[:, :, c].max(1) for c in channels], 1)


def first_of_each(split: Split, classes: int, images: int) -> tuple[NDArray[np.uint8], ...]:
    """The first rows of each class, which are a sample, because rows are permuted before they are written."""
    labels = split.labels(np.arange(len(split), dtype=np.int64))
    of = [np.arange(len(split))] if labels is None else [np.flatnonzero(labels == label) for label in range(classes)]
    return tuple(thumbnails(split.images(rows[:images].astype(np.int64))) for rows in of[:SHOWN_CLASSES])


def thumbnails(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images [n, H, W, C] of which every k-th pixel is kept, so that they are at most THUMBNAIL high and wide.

    Of a row that is one value high the start is kept, of as many values: each k-th would be another curve.
    """
    if images.shape[1] == 1:
        return images[:, :, : THUMBNAIL**2].copy()
    step = -(-max(images.shape[1:3]) // THUMBNAIL)
    top, left = ((side - 1) % step // 2 for side in images.shape[1:3])
    return images[:, top::step, left::step].copy()
