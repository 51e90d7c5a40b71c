"""Images to measure with, and the writers of each library: the same rows as raw pixels or as PNG files, with labels."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch.nn import functional

from pipeline.data.config import DataConfig, NumpySource, ShardConfig
from pipeline.data.ingest import prepare
from pipeline.data.shape import Shape
from pipeline.data.shards import write_here
from pipeline.data.sources import open_source
from pipeline.data.tar import Layout

Encoding: TypeAlias = Literal["raw", "png"]

CLASSES = 10
_CHUNK = 2000


@dataclass(frozen=True, slots=True)
class Images:
    """Rows sorted by their label, as a folder of images gives them.

    Attributes:
        name: of the set.
        pixels: uint8 [N, H, W, C].
        labels: int64 [N].
    """

    name: str
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def head(self, count: int) -> "Images":
        return Images(self.name, self.pixels[:count], self.labels[:count])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return int(self.pixels.shape[-1])

    @property
    def layout(self) -> Layout:
        return Layout(Shape(*self.pixels.shape[1:]), CLASSES)

    def samples(self) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """Image [H, W] or [H, W, C] and label of each row, as one writes them by hand."""
        pixels = self.pixels[..., 0] if self.channels == 1 else self.pixels
        yield from zip(pixels, self.labels.tolist(), strict=True)


def digits(count: int) -> Images:
    """28x28 gray: scikit-learn's digits in three times their size, with a little noise so that no two are alike."""
    small, classes = load_digits(return_X_y=True)
    scaled = np.kron(small.reshape(-1, 8, 8), np.ones((3, 3))) * (240 / 16)
    big = np.pad(scaled, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)[..., None]
    labels = np.arange(count, dtype=np.int64) * CLASSES // count
    of_class = [np.flatnonzero(classes == label) for label in range(CLASSES)]
    rows = np.array([of_class[label][row % len(of_class[label])] for row, label in enumerate(labels.tolist())])
    ink = big[rows] > 0
    noise = np.random.default_rng(0).integers(0, 16, ink.shape, np.uint8)
    return Images("28x28 gray", big[rows] + noise * ink, labels)


def scenes(count: int) -> Images:
    """64x64 RGB: smooth fields of colour with a little noise, which PNG makes about as small as photographs."""
    generator = np.random.default_rng(1)
    pixels = np.empty((count, 64, 64, 3), np.uint8)
    for start in range(0, count, _CHUNK):
        here = pixels[start : start + _CHUNK]
        coarse = torch.from_numpy(generator.integers(0, 248, (len(here), 3, 8, 8), np.uint8))
        smooth = functional.interpolate(coarse.to(memory_format=torch.channels_last), size=64, mode="bilinear")
        here[:] = smooth.movedim(1, -1).numpy() + generator.integers(0, 8, here.shape, np.uint8)
    return Images("64x64 RGB", pixels, np.arange(count, dtype=np.int64) * CLASSES // count)


def prepare_table(images: Images, folder: Path) -> Path:
    """The prepared table of all but a few rows in `folder`, as the stage `ingest` writes it."""
    np.savez(folder / "images.npz", images=images.pixels, labels=images.labels)
    source = NumpySource(kind="npz", path=str(folder / "images.npz"), labels="labels")
    config = DataConfig(source=source, validation_fraction=0.01, test_fraction=0.01, max_bad_fraction=0.0)
    with _quiet():
        prepare([open_source(source, None, config.image.max_bytes, folder)], config, folder)
    (folder / "images.npz").unlink()
    return folder


def write_ours(images: Images, folder: Path, encoding: Encoding, shard_rows: int) -> Path:
    """The shards of the table in `folder`, by one process without Ray."""
    config = ShardConfig(seed=0, shard_bytes=shard_rows * images.layout.stride, encoding=encoding)
    with _quiet():
        return write_here(folder, config)


def write_tars(images: Images, folder: Path, shard_rows: int) -> None:
    """The tars alone, in the order of the rows, neither hashed nor synced: the work that other writers do."""
    folder.mkdir(parents=True, exist_ok=True)
    layout = images.layout
    for number, start in enumerate(range(0, len(images), shard_rows)):
        labels = images.labels[start : start + shard_rows]
        data = np.zeros(layout.file_bytes(len(labels)), np.uint8)
        samples = layout.samples(data, len(labels))
        layout.write_frame(samples, "train", start)
        layout.images(samples)[:] = images.pixels[start : start + shard_rows].reshape(len(labels), -1)
        layout.write_labels(samples, np.arange(len(labels)), labels)
        data.tofile(folder / f"{number:06d}.tar")


def write_webdataset(images: Images, folder: Path, kind: str, shard_rows: int) -> list[str]:
    """Tars of KEY.npy or KEY.png, and KEY.cls, in the order of the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=shard_rows, verbose=0) as sink:
        for row, (image, label) in enumerate(images.samples()):
            sink.write({"__key__": f"{row:08d}", kind: image, "cls": label})
    return sorted(str(path) for path in folder.glob("*.tar"))


def _quiet() -> contextlib.AbstractContextManager[object]:
    return contextlib.redirect_stderr(io.StringIO())
