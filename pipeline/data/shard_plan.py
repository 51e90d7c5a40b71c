"""Which row of the prepared table goes where: permuted once within its split and generation, then cut into shards.

The permutation is of the rows sorted by id, so that the order in which a source gives its rows does not matter.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import files
from pipeline.data import table
from pipeline.data.config import ShardConfig
from pipeline.data.encoded import check_channels
from pipeline.data.order import permutation, philox
from pipeline.data.shape import Shape
from pipeline.data.split import SPLITS
from pipeline.data.tar import KEY_DIGITS, Layout
from pipeline.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """A shard to be written.

    Attributes:
        number: of the shard among all.
        name: path within the folder of shards.
        first: number in the key of its first sample.
        start: place of its first row among the rows of all shards.
        rows: how many it has.
    """

    number: int
    name: str
    split: str
    generation: int
    first: int
    start: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which row of the prepared table goes where.

    Attributes:
        data: folder that holds `prepared` and becomes that of `shards`.
        dataset: content of dataset.json.
        parts: of the prepared table, with their rows.
        shards: in the order of the manifest.
        places: int64 [N], place of each prepared row among the rows of all shards.
    """

    data: Path
    dataset: dict[str, Any]
    layout: Layout
    config: ShardConfig
    parts: tuple[tuple[Path, int], ...]
    shards: tuple[ShardPlan, ...]
    places: NDArray[np.int64]


def plan(data: Path, config: ShardConfig) -> Plan:
    """All shards: the rows of each split and generation permuted by the seed, then cut.

    Raises:
        UserError: the prepared table is missing, damaged, or not the one that `data`/dataset.json describes, or its
            images cannot be encoded as `config` says. The images themselves are not read.
    """
    dataset, layout = read_dataset(data)
    check_channels(config.encoding, layout.shape)
    parts, streams, by_id = _rows(data / "prepared", layout)
    _check_counts(data / "prepared", streams, dataset)
    shards = tuple(shard_plans(dataset["generations"], layout, config.shard_bytes))
    places, start = np.empty(len(streams), np.int64), 0
    for split in range(len(SPLITS)):
        for stream in range(split, len(dataset["generations"]) * len(SPLITS), len(SPLITS)):
            rows = by_id[streams[by_id] == stream]
            order = rows[permutation(len(rows), philox(config.seed, stream))]
            places[order] = np.arange(start, start + len(rows))
            start += len(rows)
    return Plan(data=data, dataset=dataset, layout=layout, config=config, parts=parts, shards=shards, places=places)


def read_dataset(data: Path) -> tuple[dict[str, Any], Layout]:
    """The content of `data`/dataset.json, and the layout of its tars.

    Raises:
        UserError: there is no such file, or it is not as ingest writes it.
    """
    path = data / "dataset.json"
    try:
        dataset = files.read_json(path)
        sound = _is_sound(dataset)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; prepare the data with `dvc repro ingest`") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise UserError(f"{path}: not as it was written; prepare the data again with `dvc repro -f ingest`")
    layout = Layout(
        Shape(**dataset["image"]), len(dataset["classes"]), tuple(dataset["attributes"]), dataset["embedding"]
    )
    return dataset, layout


def _is_sound(dataset: Any) -> bool:
    """Whether all that shards are made from is of its kind; else False, or the error of a missing key or wrong type."""
    kinds = {"classes": list, "attributes": list, "counts": dict, "files": dict}
    names = (
        dataset["name"],
        dataset["digest"],
        *dataset["classes"],
        *dataset["attributes"],
        *dataset["files"],
        *dataset["files"].values(),
    )
    numbers = [dataset["embedding"], *(counts[split] for counts in dataset["generations"] for split in SPLITS)]
    return (
        all(type(dataset[key]) is kind for key, kind in kinds.items())
        and all(type(name) is str and name.encode() for name in names)
        and all(type(number) is int and number >= 0 for number in numbers)
        and dataset["image"].keys() == {*Shape._fields}
        and all(type(side) is int and 0 < side < 2**16 for side in dataset["image"].values())
        and all(len(dataset["statistics"][name]) == dataset["image"]["channels"] for name in ("mean", "std"))
        and all(0 <= value <= 255 for name in ("mean", "std") for value in dataset["statistics"][name])
    )


def _rows(prepared: Path, layout: Layout) -> tuple[tuple[tuple[Path, int], ...], NDArray[np.int32], NDArray[np.int64]]:
    """The parts of the table with their rows, which permutation each row is in, and the rows ordered by id."""
    columns = table.schema(layout.shape, len(layout.attributes), layout.embedding)
    parts: list[tuple[Path, int]] = []
    found, ids = [np.empty(0, np.int32)], [pa.array([], pa.string())]
    for path in sorted(prepared.glob("part-*.parquet")):
        rows = 0
        table.check_columns(path, columns)
        for batch in table.read_part(path, ["id", "split", "generation"]):
            ids.append(batch["id"])
            split = pc.index_in(batch["split"], pa.array(SPLITS)).to_numpy()
            found.append((batch["generation"].to_numpy() * len(SPLITS) + split).astype(np.int32))
            rows += batch.num_rows
        parts.append((path.resolve(), rows))
    by_id = pc.sort_indices(pa.chunked_array(ids)).to_numpy().astype(np.int64)
    return tuple(parts), np.concatenate(found), by_id


def _check_counts(prepared: Path, streams: NDArray[np.int32], dataset: dict[str, Any]) -> None:
    generations = dataset["generations"]
    expected = [counts[split] for counts in generations for split in SPLITS]
    found = np.bincount(streams, minlength=len(expected)).tolist()
    if len(found) > len(expected):
        raise UserError(
            f"{prepared}: expected {len(generations)} generations of rows, found more; "
            "prepare the data again with `dvc repro -f ingest`"
        )
    for stream, (promised, there) in enumerate(zip(expected, found, strict=True)):
        if promised != there:
            raise UserError(
                f"{prepared}: expected {promised:,} {SPLITS[stream % len(SPLITS)]} rows in generation "
                f"{stream // len(SPLITS)}, found {there:,}; prepare the data again with `dvc repro -f ingest`"
            )
    for split in SPLITS:
        rows = sum(counts[split] for counts in generations)
        if rows != dataset["counts"].get(split):
            raise UserError(
                f"{prepared}: expected {dataset['counts'].get(split)} {split} rows, found {rows:,}; "
                "prepare the data again with `dvc repro -f ingest`"
            )
        if rows > 10**KEY_DIGITS:
            raise UserError(f"{prepared}: expected at most {10**KEY_DIGITS:,} {split} rows, found {rows:,}; use fewer")


def shard_plans(generations: Sequence[dict[str, int]], layout: Layout, shard_bytes: int) -> Iterator[ShardPlan]:
    """Every shard; rows and shards are counted through a split, so that an older generation's stay as they are."""
    number = start = 0
    for split in SPLITS:
        first = names = 0
        for generation, counts in enumerate(generations):
            borders = cut(counts[split], layout, shard_bytes)
            for low, high in pairwise(borders):
                yield ShardPlan(
                    number=number,
                    name=f"{split}/{split}-{names:06d}.tar",
                    split=split,
                    generation=generation,
                    first=first + low,
                    start=start + low,
                    rows=high - low,
                )
                number, names = number + 1, names + 1
            first, start = first + counts[split], start + counts[split]


def cut(rows: int, layout: Layout, shard_bytes: int) -> list[int]:
    """Borders of shards as equal in length as can be."""
    shards = math.ceil(rows / max(1, shard_bytes // layout.stride))
    return [number * rows // shards for number in range(shards + 1)] if shards else [0]
