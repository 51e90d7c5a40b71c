"""Which rows are for training, validation and test: as published, else by a hash of the row's group or image."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from pipeline.data.config import DataConfig

SPLITS = ("train", "val", "test")

Hashes = NDArray[np.uint64]


def text_hash(texts: Iterable[str]) -> Hashes:
    """The first 8 bytes of BLAKE2b of each text, [N]."""
    return _hashes(text.encode("utf-8", "surrogatepass") for text in texts)


def content_hash(images: NDArray[np.uint8]) -> Hashes:
    """The first 8 bytes of BLAKE2b of each image, uint8 [N, S] -> [N]; equal images have equal hashes."""
    return _hashes(np.ascontiguousarray(images))


def assign(
    official: Sequence[str | None],
    groups: Sequence[str | None],
    content: Hashes,
    config: DataConfig,
    fixed: Sequence[str],
) -> NDArray[np.int8]:
    """Split of each row, [N]: places in `SPLITS`.

    A row's split depends on nothing but the row, so it stays when rows are added. Official test and validation rows
    stay; official training rows are divided into train and val, unless the publisher fixed val too; rows without an
    official split are divided into all three. A row is drawn by its group, or by its image where it has none: rows of
    one group, and equal images without groups, are never on two sides.

    Args:
        official: "train", "val", "test" or None for each row.
        groups: name of each row's group, or None.
        content: from `content_hash`, [N].
        fixed: the splits that the publisher fixed.
    """
    drawn_by = content.copy()
    named = [row for row, group in enumerate(groups) if group is not None]
    drawn_by[named] = text_hash(str(groups[row]) for row in named)
    where = drawn_by / 2.0**64
    given = np.array([name or "" for name in official], dtype="U5")
    test = np.where(given == "", config.test_fraction, 0.0)
    val = np.where((given == "train") & ("val" in fixed), 0.0, test + (1 - test) * config.validation_fraction)
    drawn = np.select([where < test, where < val], [2, 1], 0)
    return np.select([given == "test", given == "val"], [2, 1], drawn).astype(np.int8)


def copies_in_other_splits(
    content: Hashes, splits: NDArray[np.int8], generations: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Rows [N] whose image another row holds in a split that goes before.

    Of equal images the oldest generation decides, within it test before val before train; those in other splits are
    marked.
    """
    ordered = np.lexsort((-splits, generations, content))
    hashes, of = content[ordered], splits[ordered]
    first = np.concatenate([[True], hashes[1:] != hashes[:-1]]) if len(hashes) else np.empty(0, bool)
    winner = of[np.maximum.accumulate(np.where(first, np.arange(len(hashes)), 0))] if len(hashes) else of
    marked = np.zeros(len(content), bool)
    marked[ordered] = of != winner
    return marked


def _hashes(items: Iterable[object]) -> Hashes:
    joined = b"".join(blake2b(item, digest_size=8).digest() for item in items)  # type: ignore[arg-type]
    return np.frombuffer(joined, ">u8").astype(np.uint64)
