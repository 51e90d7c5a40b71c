"""Write some shards in one pass over the prepared table. Runs in any process; the bytes depend on the plan alone."""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import files
from pipeline.data import table
from pipeline.data.index import ShardEntry
from pipeline.data.tar import Bytes, Layout

_CHUNK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A shard to be written.

    Attributes:
        name: path within the folder of shards.
        first: number in the key of its first sample.
        rows: int64 [N], rows of the prepared table, in the order in which they are written.
    """

    name: str
    split: str
    first: int
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Written:
    """A shard that has been written.

    Attributes:
        first: number in the key of its first sample.
        crc32: uint32 [N], of each KEY.npy.
        labels: int64 [N], or None where there are no classes.
        sums: for each channel, the sum of its values over the shard.
        squares: for each channel, the sum of their squares.
    """

    entry: ShardEntry
    first: int
    crc32: NDArray[np.uint32]
    labels: NDArray[np.int64] | None
    sums: list[int]
    squares: list[int]


def write_group(prepared: Path, folder: Path, layout: Layout, plans: Sequence[ShardPlan]) -> list[Written]:
    """Write the shards of `plans` into `folder`; each appears under its name when it is whole and on the disk.

    Memory: a row group of the table; the tars are mapped, not held.

    Raises:
        UserError: a part of the prepared table is damaged.
    """
    tars = [_Tar(folder, layout, plan) for plan in plans]
    start = 0
    for batch in table.read(prepared, ["image", "label"]):
        images, labels = table.pixels(batch["image"]), batch["label"].fill_null(0).to_numpy()
        for tar in tars:
            tar.place(start, images, labels)
        start += len(images)
    return [tar.finish() for tar in tars]


class _Tar:
    """A shard being written, in a mapped file under a temporary name."""

    def __init__(self, folder: Path, layout: Layout, plan: ShardPlan) -> None:
        self._layout, self._plan = layout, plan
        self._path = folder / plan.name
        self._temporary = self._path.with_name(f".{self._path.name}.tmp")  # Ray's retry overwrites a dead writer's
        self._map = np.memmap(self._temporary, np.uint8, "w+", shape=(layout.file_bytes(len(plan.rows)),))
        self._samples: Bytes = layout.samples(np.asarray(self._map), len(plan.rows))
        layout.write_frame(self._samples, plan.split, plan.first)
        self._places = np.argsort(plan.rows)
        self._rows = plan.rows[self._places]

    def place(self, start: int, images: Bytes, labels: NDArray[np.int64]) -> None:
        """Copy what belongs here of the table's rows from `start` on."""
        low, high = np.searchsorted(self._rows, [start, start + len(images)])
        rows, places = self._rows[low:high] - start, self._places[low:high]
        self._layout.images(self._samples)[places] = images[rows]
        if self._layout.classes:
            self._layout.write_labels(self._samples, places, labels[rows])

    def finish(self) -> Written:
        layout, plan = self._layout, self._plan
        images = layout.images(self._samples)
        head = zlib.crc32(layout.npy_header)
        crc32 = np.fromiter((zlib.crc32(image, head) for image in images), np.uint32, len(images))
        sums, squares = _moments(images, layout.shape.channels)
        labels = layout.labels(self._samples) if layout.classes else None
        return Written(self._close(), plan.first, crc32, labels, sums, squares)

    def _close(self) -> ShardEntry:
        self._map.flush()
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())
        self._temporary.replace(self._path)
        return ShardEntry(
            name=self._plan.name,
            split=self._plan.split,
            bytes=len(self._map),
            rows=len(self._plan.rows),
            sha256=files.sha256(self._path),
        )


def _moments(images: Bytes, channels: int) -> tuple[list[int], list[int]]:
    """Sum and sum of squares of each channel, exactly."""
    sums, squares = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    for start in range(0, len(images), _CHUNK_ROWS):
        values = images[start : start + _CHUNK_ROWS].reshape(-1, channels).astype(np.int64)
        sums += values.sum(0)
        squares += (values * values).sum(0)
    return sums.tolist(), squares.tolist()
