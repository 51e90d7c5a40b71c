"""Raw shards of random rows, written without a source, an ingest or Ray: any sizes, generations and parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import files
from pipeline.data.index import INDEX, Manifest, ShardEntry, write_manifest
from pipeline.data.shape import Shape
from pipeline.data.tar import Layout, key

SHAPE = Shape(3, 2, 1)


@dataclass(frozen=True)
class Made:
    """A folder of shards, and the rows of each split that were put into it."""

    folder: Path
    images: Mapping[str, NDArray[np.uint8]]  # [N, H, W, C]
    labels: Mapping[str, NDArray[np.int64]]
    attributes: Mapping[str, NDArray[np.float32]]
    embeddings: Mapping[str, NDArray[np.float32]]


def make_shards(
    folder: Path,
    splits: Mapping[str, Sequence[Sequence[int]]],
    *,
    shape: Shape = SHAPE,
    classes: int = 3,
    attributes: tuple[str, ...] = (),
    embedding: int = 0,
) -> Made:
    """`splits` gives the rows of each shard of each generation of a split."""
    layout, random = Layout(shape, classes, attributes, embedding), np.random.default_rng(0)
    made = Made(folder, {}, {}, {}, {})
    entries: list[ShardEntry] = []
    tables: list[pa.Table] = []
    for split, generations in splits.items():
        (folder / split).mkdir(parents=True)
        count = sum(map(sum, generations))
        made.images[split] = random.integers(0, 256, (count, *shape), np.uint8)
        made.labels[split] = random.integers(0, max(1, classes), count)
        made.attributes[split] = random.standard_normal((count, len(attributes)), np.float32)
        made.embeddings[split] = random.standard_normal((count, embedding), np.float32)
        first = 0
        for generation, rows in [(g, rows) for g, shards in enumerate(generations) for rows in shards]:
            name = f"{split}/{split}-{sum(entry.split == split for entry in entries):06d}.tar"
            here = slice(first, first + rows)
            _write(folder / name, layout, made, split, here)
            entries.append(ShardEntry(
                name=name, split=split, generation=generation, bytes=layout.file_bytes(rows), rows=rows,
                sha256=files.sha256(folder / name),
            ))  # fmt: skip
            tables.append(_index(layout, made, split, name, here))
            first += rows
    pq.write_table(pa.concat_tables(tables), folder / INDEX)
    write_manifest(folder, Manifest(
        shape=shape, classes=tuple(f"c{i}" for i in range(classes)), attributes=attributes, embedding=embedding,
        encoding="raw", counts={split: sum(map(sum, sizes)) for split, sizes in splits.items()}, shards=tuple(entries),
        index=files.sha256(folder / INDEX), mean=(0.5,) * shape.channels, std=(0.3,) * shape.channels,
        dataset="0" * 64, source="made", files={},
    ))  # fmt: skip
    return made


def _write(path: Path, layout: Layout, made: Made, split: str, here: slice) -> None:
    count = here.stop - here.start
    tar = np.zeros(layout.file_bytes(count), np.uint8)
    samples = layout.samples(tar, count)
    layout.write_frame(samples, split, here.start)
    layout.images(samples)[:] = made.images[split][here].reshape(count, -1)
    if layout.classes:
        layout.write_labels(samples, np.arange(count), made.labels[split][here])
    if layout.attributes:
        layout.write_attributes(samples, np.arange(count), made.attributes[split][here])
    if layout.embedding:
        layout.embeddings(samples)[:] = made.embeddings[split][here]
    path.write_bytes(tar.tobytes())


def _index(layout: Layout, made: Made, split: str, name: str, here: slice) -> pa.Table:
    count = here.stop - here.start
    columns = {
        "key": pa.array([key(split, row) for row in range(here.start, here.stop)]),
        "shard": pa.array([name] * count, pa.dictionary(pa.int32(), pa.string())),
        "label": pa.array(made.labels[split][here]) if layout.classes else pa.nulls(count, pa.int64()),
        "split": pa.array([split] * count),
    }
    if layout.attributes:
        values = pa.array(made.attributes[split][here].reshape(-1))
        columns["attributes"] = pa.FixedSizeListArray.from_arrays(values, len(layout.attributes))
    return pa.table(columns)
