"""index.parquet: a row a sample, in the order of the shards."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.shard_plan import ShardPlan
from pipeline.data.tar import Bytes, Content, Layout, keys

_ROW_GROUP = 131_072  # rows, so that the bytes do not depend on who wrote which


def schema(layout: Layout) -> pa.Schema:
    columns = {
        "key": pa.string(),
        "shard": pa.dictionary(pa.int32(), pa.string()),
        "offset": pa.int64(),  # of the content of the image member in the tar, bytes
        "size": pa.int64(),  # of that content
        "label": pa.int64(),
        "split": pa.string(),
        "crc32": pa.uint32(),  # of that content
        "id": pa.string(),  # of the prepared row
    }
    if layout.attributes:
        columns["attributes"] = pa.list_(pa.float32(), len(layout.attributes))
    return pa.schema(columns)


@contextmanager
def writer(folder: Path, group: int, layout: Layout) -> Iterator[Any]:
    """A file of `folder` that keeps the rows of a group of shards until the index is written."""
    path = folder / f"index-{group:06d}.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _kept(layout)) as file:
        yield file


def batch(plan: ShardPlan, content: Content, samples: Bytes, ids: pa.Array, layout: Layout) -> pa.RecordBatch:
    """The rows of a shard, its name as its number."""
    names = keys(plan.split, plan.first, plan.rows)
    ends = np.arange(plan.rows + 1, dtype=np.int32) * names.shape[1]
    columns = {
        "key": pa.StringArray.from_buffers(plan.rows, pa.py_buffer(ends), pa.py_buffer(names)),
        "shard": pa.array(np.full(plan.rows, plan.number, np.int32)),
        "offset": pa.array(content.starts[:-1] + layout.payload_at),
        "size": pa.array(content.sizes),
        "label": pa.array(layout.labels(samples)) if layout.classes else pa.nulls(plan.rows, pa.int64()),
        "split": pa.repeat(plan.split, plan.rows),
        "crc32": pa.array(content.crc32),
        "id": ids,
    }
    if layout.attributes:
        flat = pa.array(layout.attribute_values(samples).reshape(-1))
        columns["attributes"] = pa.FixedSizeListArray.from_arrays(flat, len(layout.attributes))
    return pa.RecordBatch.from_pydict(columns, schema=_kept(layout))


def write_index(path: Path, folder: Path, layout: Layout, shards: Sequence[str]) -> None:
    """Write the index from the rows kept in `folder`; memory: some row groups.

    Args:
        shards: name of each shard by its number.
    """
    columns = schema(layout)
    with pq.ParquetWriter(path, columns, compression="zstd", use_dictionary=["shard", "split"]) as file:
        for rows in _in_groups(_kept_rows(folder), _kept(layout)):
            numbers = rows["shard"].to_numpy()
            first, last = int(numbers[0]), int(numbers[-1])
            names = pa.array(shards[first : last + 1], pa.string())
            shard = pa.DictionaryArray.from_arrays(pa.array(numbers - first), names)
            arrays = [shard if name == "shard" else rows[name] for name in columns.names]
            file.write_batch(pa.RecordBatch.from_arrays(arrays, schema=columns), row_group_size=_ROW_GROUP)


def _kept(layout: Layout) -> pa.Schema:
    found = schema(layout)
    return found.set(found.get_field_index("shard"), pa.field("shard", pa.int32()))


def _kept_rows(folder: Path) -> Iterator[pa.RecordBatch]:
    for path in sorted(folder.glob("index-*.arrow")):
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
            for number in range(file.num_record_batches):
                yield file.get_batch(number)


def _in_groups(batches: Iterable[pa.RecordBatch], columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of _ROW_GROUP."""
    rows = columns.empty_table()
    for found in batches:
        rows = pa.concat_tables([rows, pa.Table.from_batches([found])])
        while rows.num_rows >= _ROW_GROUP:
            yield from rows.slice(0, _ROW_GROUP).combine_chunks().to_batches()
            rows = rows.slice(_ROW_GROUP)
    yield from rows.combine_chunks().to_batches()
