"""Data sets that stay on the device: rows are taken there by number, so a step waits for no other memory."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from bench.reproduction import sprites
from bench.reproduction.idx import read_digits
from vae_core.batch import Batch
from vae_core.config import DataSpec

DataName: TypeAlias = Literal["mnist", "mnist_static", "dsprites", "dsprites_32", "cifar10"]
DSPRITES_FILE = "dsprites_ndarray_co1sh3sc6or40x32x32_64x64.npz"
STATIC_SEED = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Images with their labels or factors, on one device.

    Attributes:
        images: uint8 [N, C, H, W], or of rendered sprites their padded masks.
        labels: int64 [N], or None.
        factors: int64 [N, F], or None.
        stride: 2 takes every second pixel of every second row.
        rendered: the number of images that `images` stands for; 0 where it holds them.
    """

    images: Tensor
    labels: Tensor | None = None
    factors: Tensor | None = None
    stride: int = 1
    rendered: int = 0

    def __len__(self) -> int:
        return self.rendered or len(self.images)

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def spec(self) -> DataSpec:
        classes = 0 if self.labels is None else int(self.labels.max()) + 1
        channels, height, width = (1, sprites.SIDE, sprites.SIDE) if self.rendered else self.images.shape[1:]
        return DataSpec(
            channels=channels, height=height // self.stride, width=width // self.stride, num_classes=classes
        )

    def batch(self, rows: Tensor, position: Tensor, weight: Tensor) -> Batch:
        """These rows, int64 [B], as one whole global batch."""
        labels = None if self.labels is None else self.labels.index_select(0, rows)
        return Batch(self._take(rows), labels, weight, position, len(rows))

    def whole(self, rows: Tensor) -> Batch:
        """`batch` of rows that all count, in their order."""
        return self.batch(rows, torch.arange(len(rows), device=self.device), torch.ones(len(rows), device=self.device))

    def factors_of(self, rows: Tensor) -> Tensor:
        """int64 [B, F].

        Raises:
            ValueError: the data have no factors.
        """
        if self.rendered:
            return sprites.factors_of(rows)
        if self.factors is None:
            raise ValueError("these data have no factors of variation")
        return self.factors.index_select(0, rows)

    def mean(self) -> Tensor:
        """[C, H, W] float32: the mean intensity of each pixel over (at most 100,000 evenly spaced) rows, in [0, 1]."""
        rows = torch.arange(0, len(self), math.ceil(len(self) / 100_000), device=self.device)
        total = torch.zeros(self.spec.shape, dtype=torch.float64, device=self.device)
        for part in rows.split(4096):
            total += self._take(part).sum(0, dtype=torch.float64)
        return (total / (255 * len(rows))).float()

    def _take(self, rows: Tensor) -> Tensor:
        if self.rendered:
            return sprites.render(self.images, rows, stride=self.stride)
        return self.images.index_select(0, rows)[..., :: self.stride, :: self.stride]


@dataclass(frozen=True, slots=True)
class Data:
    """Training and test rows (the same where the set has no split), and what they are.

    Attributes:
        published: they are the published files, so that figures can be compared.
    """

    train: Rows
    test: Rows
    what: str
    published: bool


def open_data(name: DataName, place: Path, device: torch.device) -> Data:
    """A data set on `device`.

    Args:
        place: a folder with MNIST's IDX files (and dSprites' .npz where the published file is wanted), or MNIST's .npz.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged; NotImplementedError: there is no such reader.
    """
    match name:
        case "mnist":
            return _mnist(place, device)
        case "mnist_static":
            return _static(_mnist(place, device))
        case "dsprites" | "dsprites_32":
            return _dsprites(place, device, stride=2 if name == "dsprites_32" else 1)
        case _:
            raise NotImplementedError(f"{name}: needs data that this bench does not read")


def _mnist(place: Path, device: torch.device) -> Data:
    digits = read_digits(place)
    train, test = (
        Rows(torch.from_numpy(images[:, None].copy()).to(device), torch.from_numpy(labels.astype(np.int64)).to(device))
        for images, labels in ((digits.train_images, digits.train_labels), (digits.test_images, digits.test_labels))
    )
    return Data(train, test, f"{len(train):,} training and {len(test):,} test images", digits.published)


def _static(data: Data) -> Data:
    """Each pixel drawn once as 0 or 255 with its intensity as probability; the last sixth of the training rows unused.

    The published static set has 50,000 training images too; its draw is another.
    """
    generator = np.random.default_rng(STATIC_SEED)

    def binary(rows: Rows) -> Rows:
        grey = rows.images.cpu().numpy()
        drawn = (generator.random(grey.shape, np.float32) < grey / np.float32(255)) * np.uint8(255)
        return replace(rows, images=torch.from_numpy(drawn).to(rows.device))

    kept = len(data.train) * 5 // 6
    train = Rows(data.train.images[:kept], None if data.train.labels is None else data.train.labels[:kept])
    what = f"{kept:,} training and {len(data.test):,} test images, binarised once with seed {STATIC_SEED}"
    return Data(binary(train), binary(data.test), what, data.published)


def _dsprites(place: Path, device: torch.device, *, stride: int) -> Data:
    small = f", one pixel of each {stride} x {stride}" if stride > 1 else ""
    path = place / DSPRITES_FILE
    if not path.is_file():
        rows = Rows(sprites.padded_masks().to(device), stride=stride, rendered=sprites.ROWS)
        return Data(rows, rows, f"737,280 images rendered to the published definition{small}", True)
    with np.load(path, allow_pickle=False) as stored:
        images, factors = stored["imgs"], stored["latents_classes"][:, 1:]
    images *= np.uint8(255)
    rows = Rows(torch.from_numpy(images[:, None]).to(device), None, torch.from_numpy(factors).to(device), stride=stride)
    return Data(rows, rows, f"the {len(rows):,} published images{small}", True)
