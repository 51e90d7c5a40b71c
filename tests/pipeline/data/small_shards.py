"""Real shards of a few rows, written in a moment: two splits, three members and more a sample."""

import hashlib
import os
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.encoded import encoded
from pipeline.data.index import INDEX, Manifest, ShardEntry, write_manifest
from pipeline.data.shape import Shape
from pipeline.data.tar import Content, Layout, end_zeros, key

CLASSES, ATTRIBUTES = ("cat", "dog", "eel"), ("width", "height")
LAYOUT = Layout(Shape(6, 5, 3), len(CLASSES), ATTRIBUTES, 4)
ROWS = {"train": (20, 20, 13), "val": (9,)}

INDEX_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "shard": pa.dictionary(pa.int32(), pa.string()),
        "offset": pa.int64(),
        "size": pa.int64(),
        "label": pa.int64(),
        "split": pa.string(),
        "crc32": pa.uint32(),
        "attributes": pa.list_(pa.float32(), len(ATTRIBUTES)),
    }
)


def write_small(folder: Path, *, encoding: Literal["raw", "png"] = "raw", seed: int = 0) -> Manifest:
    """Shards in `folder`, its manifest last. Another seed gives other pixels, and all else the same."""
    random = np.random.default_rng(seed)
    entries, tables = [], []
    for split, counts in ROWS.items():
        (folder / split).mkdir(parents=True)
        for number, count in enumerate(counts):
            name, first = f"{split}/{split}-{number:06d}.tar", sum(counts[:number])
            labels = np.arange(count) % len(CLASSES)
            attributes = random.normal(size=(count, len(ATTRIBUTES))).astype(np.float32)
            content = tar(random, split, first, labels, attributes, encoding)
            data = bytes(content.data)
            data += bytes(end_zeros(len(data)))
            path = folder / name
            path.write_bytes(data)
            age(path)
            digest = hashlib.sha256(data).hexdigest()
            entries.append(ShardEntry(name=name, split=split, generation=0, bytes=len(data), rows=count, sha256=digest))
            at = LAYOUT.payload_at
            columns = [
                pa.array([key(split, first + row) for row in range(count)]),
                pa.array([name] * count).dictionary_encode(),
                pa.array(content.starts[:-1] + at),
                pa.array(content.sizes),
                pa.array(labels),
                pa.array([split] * count),
                pa.array(content.crc32),
                pa.FixedSizeListArray.from_arrays(attributes.ravel(), len(ATTRIBUTES)),
            ]
            tables.append(pa.Table.from_arrays(columns, schema=INDEX_SCHEMA))
    with pq.ParquetWriter(folder / INDEX, INDEX_SCHEMA) as index:
        for table in tables:
            index.write_table(table)
    manifest = Manifest(
        shape=LAYOUT.shape, classes=CLASSES, attributes=ATTRIBUTES, embedding=LAYOUT.embedding, encoding=encoding,
        counts={split: sum(counts) for split, counts in ROWS.items()}, shards=tuple(entries),
        index=hashlib.sha256((folder / INDEX).read_bytes()).hexdigest(),
        mean=(0.5,) * 3, std=(0.2,) * 3, dataset="0" * 64, source="small", files={},
    )  # fmt: skip
    write_manifest(folder, manifest)
    return manifest


def tar(
    random: np.random.Generator, split: str, first: int, labels: np.ndarray, attributes: np.ndarray, encoding: str
) -> Content:
    count = len(labels)
    samples = np.zeros((count, LAYOUT.stride), np.uint8)
    LAYOUT.write_frame(samples, split, first)
    LAYOUT.write_labels(samples, np.arange(count), labels)
    LAYOUT.write_attributes(samples, np.arange(count), attributes)
    LAYOUT.images(samples)[:] = random.integers(0, 256, (count, LAYOUT.shape.size), np.uint8)
    LAYOUT.embeddings(samples)[:] = random.normal(size=(count, LAYOUT.embedding))
    return LAYOUT.content(samples) if encoding == "raw" else encoded(samples, LAYOUT, split, first, "png", 95)


def age(path: Path) -> None:
    """Let a file be a minute old: no stamp is given to one that may just be being written."""
    then = path.stat().st_mtime_ns - 60 * 10**9
    os.utime(path, ns=(then, then))
