"""The readers: each gives every row of an epoch in random order, 256 images and labels a batch, as torch tensors."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

import numpy as np
import pyarrow.parquet as pq
import torch
import webdataset
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.data import mosaic
from bench.data.sets import Images
from pipeline.data import Loader, open_split
from pipeline.data.config import ReadConfig
from pipeline.data.index import read_manifest

BATCH = 256
WINDOW = 4
Pair: TypeAlias = tuple[Tensor, Tensor]  # uint8 [B, C, H, W], int64 [B]


class Reader(Protocol):
    def epoch(self, number: int) -> Iterator[Pair]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Contender:
    """A line of a table.

    Attributes:
        open: a new reader of what is on the disk.
        files: what it reads, to be dropped from the page cache.
        all_cores: it has processes of its own, and is not kept on one core.
        missing: why it cannot be measured; empty: it can.
    """

    name: str
    open: Callable[[], Reader]
    files: Path | None = None
    all_cores: bool = False
    missing: str = ""


class Ours:
    def __init__(self, shards: Path, cache: Path, window: int = WINDOW) -> None:
        split = open_split(shards, "train", ReadConfig(cache=str(cache)))
        self._loader = Loader(split, seed=0, window_shards=window, global_batch_size=BATCH)

    def epoch(self, number: int) -> Iterator[Pair]:
        for batch in self._loader.epoch(number):
            assert batch.labels is not None
            yield batch.images, batch.labels

    def close(self) -> None:
        pass


class PlainWebDataset:
    """As its documents have it: shards and samples shuffled, decoded, batched."""

    def __init__(self, tars: list[str], kind: str, gray: bool) -> None:
        decoders = () if kind == "npy" else ("l8" if gray else "rgb8",)
        shuffled = webdataset.WebDataset(tars, shardshuffle=100).shuffle(1000)
        self._data = shuffled.decode(*decoders).to_tuple(kind, "cls").batched(BATCH)

    def epoch(self, number: int) -> Iterator[Pair]:
        for images, labels in self._data:
            yield _channels_first(torch.from_numpy(images)), torch.from_numpy(labels)

    def close(self) -> None:
        self._data.close()


class IndexedTars(Dataset[tuple[Tensor, int]]):
    """What one writes by hand over an index of tars: seek, read, decode, a sample at a time."""

    def __init__(self, shards: Path) -> None:
        table = pq.read_table(shards / "index.parquet", filters=[("split", "==", "train")])
        self._tars = [str(shards / name) for name in table["shard"].to_pylist()]
        self._offsets, self._sizes = table["offset"].to_numpy(), table["size"].to_numpy()
        self._labels = table["label"].to_numpy()
        manifest = read_manifest(shards)
        self._shape, self._raw = manifest.shape, manifest.encoding == "raw"
        self._files: dict[str, BinaryIO] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        tar = self._tars[row]
        if tar not in self._files:
            self._files[tar] = open(tar, "rb")
        self._files[tar].seek(self._offsets[row])
        data = self._files[tar].read(self._sizes[row])
        return torch.from_numpy(self._decode(data)), self._labels[row]

    def _decode(self, data: bytes) -> NDArray[np.uint8]:
        if not self._raw:
            return np.array(Image.open(io.BytesIO(data)))
        return np.frombuffer(data, np.uint8, offset=len(data) - self._shape.size).reshape(self._shape)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class TorchLoader:
    def __init__(self, shards: Path, workers: int) -> None:
        self._data = IndexedTars(shards)
        self._loader = DataLoader(
            self._data, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )

    def epoch(self, number: int) -> Iterator[Pair]:
        for images, labels in self._loader:
            yield _channels_first(images), labels

    def close(self) -> None:
        self._data.close()


class InMemory:
    """The limit: rows of one array, taken by NumPy's fastest way, `take`."""

    def __init__(self, images: Images) -> None:
        self._images = images

    def epoch(self, number: int) -> Iterator[Pair]:
        order = np.random.default_rng(number).permutation(len(self._images))
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            images = torch.from_numpy(self._images.pixels.take(rows, 0))
            yield _channels_first(images), torch.from_numpy(self._images.labels.take(rows))

    def close(self) -> None:
        pass


def _channels_first(images: Tensor) -> Tensor:
    return images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)


def streaming(folder: Path) -> Contender:
    """One of MosaicML's, whose shards are in `folder`."""
    return Contender("MosaicML streaming", lambda: mosaic.Streaming(folder, BATCH), folder, missing=mosaic.MISSING)
