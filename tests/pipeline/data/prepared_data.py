"""Random prepared tables as ingest writes them, for the tests of shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import files
from pipeline.data import table
from pipeline.data.shape import Shape
from pipeline.data.split import SPLITS

SHAPE = Shape(2, 3, 1)
BATCH = 13


def prepare_random(
    data: Path,
    rows: Sequence[int] = (150,),
    *,
    shape: Shape = SHAPE,
    classes: int = 3,
    attributes: tuple[str, ...] = (),
    embedding: int = 0,
    part_rows: int = 40,
) -> Path:
    """Write `data`/prepared and `data`/dataset.json with `rows` of each generation; a generation depends on its number.

    Returns:
        `data`.
    """
    (data / "prepared").mkdir(parents=True)
    columns = table.schema(shape, len(attributes), embedding)
    batches = [_generation(number, count, columns, classes) for number, count in enumerate(rows)]
    everything = pa.Table.from_batches(batches)
    for number, start in enumerate(range(0, len(everything), part_rows)):
        with table.PartWriter(data / "prepared" / table.part_name(number), columns) as part:
            for batch in everything.slice(start, part_rows).combine_chunks().to_batches(BATCH):
                part.write(batch)
    generations = [
        {split: batch["split"].to_pylist().count(split) for split in SPLITS} for batch in batches
    ]  # fmt: skip
    facts = {
        "name": "random",
        "digest": "d" * 64,
        "image": shape._asdict(),
        "classes": [f"class {number}" for number in range(classes)],
        "attributes": list(attributes),
        "embedding": embedding,
        "counts": {split: sum(counts[split] for counts in generations) for split in SPLITS},
        "generations": generations,
        "statistics": {"mean": [51.0] * shape.channels, "std": [25.5] * shape.channels},
        "files": {"rows": "0" * 64},
    }
    files.write_json(data / "dataset.json", facts)
    return data


def prepared_rows(data: Path, split: str) -> list[dict[str, Any]]:
    """The rows of a split."""
    found = pq.read_table(data / "prepared").drop_columns(["source"])
    return found.filter(pa.compute.field("split") == split).to_pylist()


def _generation(number: int, rows: int, columns: pa.Schema, classes: int) -> pa.RecordBatch:
    random = np.random.default_rng(number)
    size = columns.field("image").type.byte_width
    images = random.integers(0, 256, (rows, size), np.uint8)
    splits = ["train", "val", "test", *random.choice(SPLITS, rows - 3, p=[0.6, 0.2, 0.2]).tolist()]
    arrays = {
        "id": pa.array([f"{number}-{row}" for row in range(rows)]),
        "image": pa.array([image.tobytes() for image in images], pa.binary(size)),
        "label": pa.array(random.integers(0, classes, rows)) if classes else pa.nulls(rows, pa.int64()),
        "attributes": _vectors(columns.field("attributes").type, random, rows),
        "embedding": _vectors(columns.field("embedding").type, random, rows),
        "source": pa.array(["memory"] * rows),
        "split": pa.array(splits),
        "generation": pa.array([number] * rows, pa.int32()),
    }
    return pa.RecordBatch.from_pydict(arrays, schema=columns)


def _vectors(kind: pa.DataType, random: np.random.Generator, rows: int) -> pa.Array:
    if pa.types.is_null(kind):
        return pa.nulls(rows)
    flat = random.normal(size=rows * kind.list_size).astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), kind.list_size)
