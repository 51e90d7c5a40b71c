"""Small data sets, sharded without Ray by the functions that the Ray tasks run."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.config import DataConfig, PublishedSource, ShardConfig
from pipeline.data.ingest import prepare
from pipeline.data.shape import Shape
from pipeline.data.shards import write_here
from pipeline.data.sources.base import ROWS, Source
from pipeline.data.sources.digits import open_digits

SHAPE = Shape(2, 3, 1)


class ListPartition:
    """Rows given one by one, so that a test can put any fault into them."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    @property
    def rows(self) -> int:
        return len(self._rows)

    def batches(self, rows: int = 7) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(self._rows), rows):
            yield pa.RecordBatch.from_pylist(self._rows[start : start + rows], schema=ROWS)


def list_source(
    rows: list[dict[str, Any]],
    shape: Shape | None = SHAPE,
    classes: str = "ab",
    *,
    partition: int = 10**6,
    **facts: Any,
) -> Source:
    """A source of `rows`, `partition` rows a partition."""
    parts = tuple(ListPartition(rows[start : start + partition]) for start in range(0, len(rows), partition))
    return Source(
        name="list", partitions=parts, pixels=shape, classes=tuple(classes), digests={"rows": "0" * 64}, **facts
    )


def list_rows(count: int, *, size: int = 6, classes: int = 2, split: str | None = None) -> list[dict[str, Any]]:
    pixels = np.random.default_rng(count).integers(0, 256, (count, size), np.uint8)
    return [
        {"id": f"r{i}", "image": pixels[i].tobytes(), "label": i % classes if classes else None, "source": "s",
         "split": split}
        for i in range(count)
    ]  # fmt: skip


def data_config(**changes: Any) -> DataConfig:
    values = {"validation_fraction": 0.2, "test_fraction": 0.2, "max_bad_fraction": 0.0, **changes}
    return DataConfig(source=PublishedSource(kind="digits"), **values)


def shard_locally(data: Path, *, shard_bytes: int = 65536, seed: int = 0, writers: int = 1, **changes: Any) -> Path:
    """What `write_shards` does, in this process."""
    return write_here(data, ShardConfig(seed=seed, shard_bytes=shard_bytes, **changes), writers=writers)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of scikit-learn's digits: prepared, and sharded into several tars. Not to be changed."""
    data = tmp_path_factory.mktemp("digits") / "data"
    prepare([open_digits(None)], data_config(), data)
    shard_locally(data, shard_bytes=400_000)
    return data


@pytest.fixture
def copied_shards(digits: Path, tmp_path: Path) -> Path:
    """Shards of the digits that a test may damage."""
    return Path(shutil.copytree(digits / "shards", tmp_path / "shards"))


@pytest.fixture
def make_rows() -> Callable[..., list[dict[str, Any]]]:
    return list_rows


@pytest.fixture
def make_source() -> Callable[..., Source]:
    return list_source


@pytest.fixture
def make_config() -> Callable[..., DataConfig]:
    return data_config


@pytest.fixture
def shard() -> Callable[..., Path]:
    return shard_locally
