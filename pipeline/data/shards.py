"""From the prepared table to WebDataset tars: permute once, cut, write in parallel, index, manifest.

The same rows and the same `shard` section give the same bytes, whatever the number of writers.
"""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import files, progress, runtime
from pipeline.config import ComputeConfig, ShardConfig
from pipeline.data import table
from pipeline.data.index import INDEX, Manifest, write_manifest
from pipeline.data.order import permutation, philox
from pipeline.data.shape import Shape
from pipeline.data.shard_writer import ShardPlan, Written, write_group
from pipeline.data.split import SPLITS
from pipeline.data.tar import BLOCK, Layout, key
from pipeline.errors import UserError

MAX_OPEN_SHARDS = 256  # a task keeps its shards open, and a process may open about a thousand files

_INDEX = pa.schema(
    {
        "key": pa.string(),
        "shard": pa.string(),
        "offset": pa.int64(),  # of the content of KEY.npy in the tar, bytes
        "size": pa.int64(),  # of that content
        "label": pa.int64(),
        "split": pa.string(),
        "crc32": pa.uint32(),  # of that content
    }
)


def write_shards(data: Path, config: ShardConfig, compute: ComputeConfig) -> None:
    """Replace `data`/shards by shards of `data`/prepared, written by one Ray task a core.

    Raises:
        UserError: the prepared table is missing, damaged, or not the one that `data`/dataset.json describes.
    """
    dataset, layout = read_dataset(data)
    plans = plan(data, dataset["counts"], layout, config)
    with files.new_directory(data / "shards") as folder, runtime.cluster(compute):
        make_folders(folder)
        written = _in_parallel(data / "prepared", folder, layout, deal(plans, os.cpu_count() or 1))
        finish(folder, dataset, layout, written)


def read_dataset(data: Path) -> tuple[dict[str, Any], Layout]:
    """The content of `data`/dataset.json, and the layout of its tars.

    Raises:
        UserError: there is no such file.
    """
    try:
        dataset = files.read_json(data / "dataset.json")
    except FileNotFoundError:
        raise UserError(f"{data / 'dataset.json'}: no such file; prepare the data with `dvc repro ingest`") from None
    return dataset, Layout(Shape(**dataset["image"]), len(dataset["classes"]))


def plan(data: Path, counts: dict[str, int], layout: Layout, config: ShardConfig) -> list[ShardPlan]:
    """All shards: each split permuted by the seed, then cut into equal shards of at most `shard_bytes`.

    Raises:
        UserError: the rows are not those that `counts` promises.
    """
    batches = table.read(data / "prepared", ["split"])
    columns = [batch["split"].to_numpy(zero_copy_only=False) for batch in batches]
    splits = np.concatenate(columns) if columns else np.empty(0, object)
    plans: list[ShardPlan] = []
    for stream, split in enumerate(SPLITS):
        rows = np.flatnonzero(splits == split)
        if len(rows) != counts[split]:
            raise UserError(
                f"{data / 'prepared'}: expected {counts[split]:,} {split} rows, found {len(rows):,}; "
                "prepare the data again with `dvc repro -f ingest`"
            )
        plans += cut(split, rows[permutation(len(rows), philox(config.seed, stream))], layout, config.shard_bytes)
    return plans


def cut(split: str, rows: NDArray[np.int64], layout: Layout, shard_bytes: int) -> Iterator[ShardPlan]:
    """Shards of `rows` in their order, as equal in length as can be."""
    shards = math.ceil(len(rows) / max(1, shard_bytes // layout.stride))
    for number in range(shards):
        start, stop = number * len(rows) // shards, (number + 1) * len(rows) // shards
        yield ShardPlan(f"{split}/{split}-{number:06d}.tar", split, start, rows[start:stop])


def deal(plans: Sequence[ShardPlan], writers: int) -> list[Sequence[ShardPlan]]:
    """Groups of shards of nearly equal number, one a writer, or more where a writer would have too many files open."""
    groups = max(min(writers, len(plans)), math.ceil(len(plans) / MAX_OPEN_SHARDS))
    return [plans[group::groups] for group in range(groups)]


def make_folders(folder: Path) -> None:
    for split in SPLITS:
        (folder / split).mkdir()


def finish(folder: Path, dataset: dict[str, Any], layout: Layout, written: Sequence[Written]) -> None:
    """Write index.parquet and, last, manifest.json for the shards in `folder`."""
    written = sorted(written, key=lambda shard: (SPLITS.index(shard.entry.split), shard.first))
    with pq.ParquetWriter(folder / INDEX, _INDEX, compression="zstd") as index:
        for shard in written:
            index.write_batch(_index(shard, layout))
    mean, std = _statistics([shard for shard in written if shard.entry.split == "train"], layout.shape)
    manifest = Manifest(
        shape=layout.shape,
        classes=tuple(dataset["classes"]),
        counts=dataset["counts"],
        shards=tuple(shard.entry for shard in written),
        mean=mean,
        std=std,
        dataset=dataset["digest"],
        source=dataset["name"],
        files=dataset["files"],
    )
    write_manifest(folder, manifest)


def _in_parallel(prepared: Path, folder: Path, layout: Layout, groups: Sequence[Sequence[ShardPlan]]) -> list[Written]:
    import ray

    task = ray.remote(num_cpus=1)(write_group)
    results = [task.remote(prepared.resolve(), folder.resolve(), layout, group) for group in groups]
    written = (shard for result in results for shard in ray.get(result))
    try:
        return list(progress.track(written, total=sum(map(len, groups)), what="shard", unit="tars"))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _index(shard: Written, layout: Layout) -> pa.RecordBatch:
    count, split = shard.entry.rows, shard.entry.split
    columns = [
        pa.array([key(split, row) for row in range(shard.first, shard.first + count)]),
        pa.array([shard.entry.name] * count),
        pa.array(np.arange(count, dtype=np.int64) * layout.stride + BLOCK),
        pa.array(np.full(count, layout.payload, np.int64)),
        pa.nulls(count, pa.int64()) if shard.labels is None else pa.array(shard.labels),
        pa.array([split] * count),
        pa.array(shard.crc32),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_INDEX)


def _statistics(shards: Sequence[Written], shape: Shape) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, pixels in [0, 1]; whole numbers until the last division."""
    count = sum(shard.entry.rows for shard in shards) * shape.height * shape.width
    sums = [sum(channel) for channel in zip(*(shard.sums for shard in shards), strict=True)]
    squares = [sum(channel) for channel in zip(*(shard.squares for shard in shards), strict=True)]
    mean = tuple(total / (255 * count) for total in sums)
    variances = [(count * square - total**2) / (255 * count) ** 2 for total, square in zip(sums, squares, strict=True)]
    return mean, tuple(math.sqrt(variance) for variance in variances)
