"""Which rows are for training, validation and test: as published, else by a hash of the image."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig

SPLITS = ("train", "val", "test")


def content_hash(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The first 8 bytes of BLAKE2b of each image, uint8 [N, S] -> [N]; equal images have equal hashes."""
    joined = b"".join(blake2b(row, digest_size=8).digest() for row in np.ascontiguousarray(images))
    return np.frombuffer(joined, ">u8").astype(np.uint64)


def assign(official: Sequence[str | None], hashes: NDArray[np.uint64], config: DataConfig) -> NDArray[np.str_]:
    """Split of each row, [N] of `SPLITS`.

    A row's split depends on nothing but the row, so it stays when rows are added. Official test rows stay test;
    official training rows are divided into train and val; rows without an official split are divided into all three.
    Equal images without an official split are therefore never on two sides.

    Args:
        official: "train", "test" or None for each row.
        hashes: from `content_hash`, [N].
    """
    where = hashes / 2.0**64
    given = np.array([name or "" for name in official], dtype="U5")
    test = np.where(given == "", config.test_fraction, 0.0)
    val = test + (1 - test) * config.validation_fraction
    drawn = np.select([where < test, where < val], ["test", "val"], "train")
    return np.where(given == "test", "test", drawn)
