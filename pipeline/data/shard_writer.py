"""Write the shards of one group of rows. Runs in any process; the bytes depend on the plan and the rows alone."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data import companions, index_rows, table
from pipeline.data.config import ShardConfig
from pipeline.data.encoded import encoded
from pipeline.data.external_shuffle import Shuffle
from pipeline.data.index import ShardEntry
from pipeline.data.shard_plan import ShardPlan
from pipeline.data.tar import Bytes, Content, Layout, end_zeros


@dataclass(frozen=True, slots=True)
class Group:
    """Shards that follow each other and are written together.

    Attributes:
        number: of the group in the shuffle.
    """

    number: int
    shards: tuple[ShardPlan, ...]


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """Writes groups of shards.

    Attributes:
        folder: of the shards; has a folder for each split.
    """

    shuffle: Shuffle
    folder: Path
    layout: Layout
    config: ShardConfig

    def write(self, group: Group) -> list[ShardEntry]:
        """Write the shards of a group in their order, and their rows of the index into the shuffle's folder.

        Memory: the group as raw tars.
        """
        samples, ids = self._gather(group)
        start = group.shards[0].start
        waiting = []
        with index_rows.writer(self.shuffle.folder, group.number, self.layout) as rows, ThreadPoolExecutor(2) as disk:
            for plan in group.shards:
                mine, names = samples[plan.start - start :][: plan.rows], ids.slice(plan.start - start, plan.rows)
                content = self._content(mine, plan)
                saved = disk.submit(_save, plan, content, self.folder)  # while the next one is made
                rows.write_batch(index_rows.batch(plan, content, mine, names, self.layout))
                waiting.append(saved)
        return [saved.result() for saved in waiting]

    def _gather(self, group: Group) -> tuple[Bytes, pa.Array]:
        """The samples [rows, stride] of a group, complete, and the ids [rows] of their rows."""
        layout, start = self.layout, group.shards[0].start
        samples = np.zeros((sum(plan.rows for plan in group.shards), layout.stride), np.uint8)
        for plan in group.shards:
            layout.write_frame(samples[plan.start - start :][: plan.rows], plan.split, plan.first)
        found, ids = [], []
        for batch in self.shuffle.gather(group.number):
            found.append(batch["place"].to_numpy() - start)
            ids.append(batch["id"])
            self._place(samples, found[-1], batch)
        places = np.concatenate(found)
        order = np.argsort(places)
        assert np.array_equal(places[order], np.arange(len(samples))), "a row was lost or came twice"
        return samples, pa.concat_arrays(ids).take(pa.array(order))

    def _place(self, samples: Bytes, places: NDArray[np.int64], batch: pa.RecordBatch) -> None:
        layout = self.layout
        layout.images(samples)[places] = table.pixels(batch["image"])
        if layout.classes:
            layout.write_labels(samples, places, batch["label"].to_numpy())
        if layout.attributes:
            values = batch["attributes"].flatten().to_numpy()
            layout.write_attributes(samples, places, values.reshape(-1, len(layout.attributes)))
        if layout.embedding:
            layout.embeddings(samples)[places] = batch["embedding"].flatten().to_numpy().reshape(-1, layout.embedding)

    def _content(self, samples: Bytes, plan: ShardPlan) -> Content:
        codec, quality = self.config.encoding, self.config.jpeg_quality
        if codec == "raw":
            return self.layout.content(samples)
        return encoded(samples, self.layout, plan.split, plan.first, codec, quality)


def _save(plan: ShardPlan, content: Content, folder: Path) -> ShardEntry:
    """Write a tar and its index; the tar appears under its name when it is whole and on the disk."""
    path = folder / plan.name
    zeros = bytes(end_zeros(len(content.data)))
    temporary = path.with_name(f".{path.name}.tmp")  # a second try overwrites what a dead one left
    with temporary.open("wb") as file:
        file.write(content.data)
        file.write(zeros)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    companions.write_tar_index(path, content.starts)
    digest = hashlib.sha256(content.data)
    digest.update(zeros)
    return ShardEntry(
        name=plan.name,
        split=plan.split,
        generation=plan.generation,
        bytes=len(content.data) + len(zeros),
        rows=plan.rows,
        sha256=digest.hexdigest(),
    )
