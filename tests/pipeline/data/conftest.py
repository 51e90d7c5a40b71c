"""Small data sets, sharded without Ray by the functions that the Ray tasks run."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import files
from pipeline.config import DataConfig, ShardConfig, SourceConfig
from pipeline.data import shards
from pipeline.data.ingest import prepare
from pipeline.data.shape import Shape
from pipeline.data.shard_writer import write_group
from pipeline.data.sources.base import ROWS
from pipeline.data.sources.digits import open_digits

SHAPE = Shape(2, 3, 1)


class ListSource:
    """A source given row by row, so that a test can put any fault into it."""

    def __init__(self, rows: list[dict[str, Any]], shape: Shape = SHAPE, classes: str = "ab") -> None:
        self.name, self.shape, self.classes = "list", shape, tuple(classes)
        self.digests = {"rows": "0" * 64}
        self.rows = len(rows)
        self._rows = rows

    def batches(self, rows: int = 7) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(self._rows), rows):
            yield pa.RecordBatch.from_pylist(self._rows[start : start + rows], schema=ROWS)


def list_rows(count: int, *, size: int = 6, classes: int = 2, split: str | None = None) -> list[dict[str, Any]]:
    pixels = np.random.default_rng(count).integers(0, 256, (count, size), np.uint8)
    return [
        {"id": f"r{i}", "image": pixels[i].tobytes(), "label": i % classes if classes else None, "source": "s",
         "split": split}
        for i in range(count)
    ]  # fmt: skip


def data_config(**changes: Any) -> DataConfig:
    values = {"validation_fraction": 0.2, "test_fraction": 0.2, "max_bad_fraction": 0.0, **changes}
    return DataConfig(source=SourceConfig(kind="digits"), **values)


def shard_locally(data: Path, *, shard_bytes: int = 65536, seed: int = 0, writers: int = 1) -> Path:
    """What `write_shards` does, in this process."""
    dataset, layout = shards.read_dataset(data)
    plans = shards.plan(data, dataset["counts"], layout, ShardConfig(seed=seed, shard_bytes=shard_bytes))
    with files.new_directory(data / "shards") as folder:
        shards.make_folders(folder)
        groups = shards.deal(plans, writers)
        written = [shard for group in groups for shard in write_group(data / "prepared", folder, layout, group)]
        shards.finish(folder, dataset, layout, written)
    return data / "shards"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of scikit-learn's digits: prepared, and sharded into several tars. Not to be changed."""
    data = tmp_path_factory.mktemp("digits") / "data"
    prepare(open_digits(None), data_config(), data)
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
def make_source() -> type[ListSource]:
    return ListSource


@pytest.fixture
def make_config() -> Callable[..., DataConfig]:
    return data_config


@pytest.fixture
def shard() -> Callable[..., Path]:
    return shard_locally
