"""Samples read a second: our loader, plain webdataset, and an array in memory; one process, one run, warm cache.

python bench/read.py            # after `dvc repro shard`
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import webdataset

from pipeline.data.loader import Loader, open_split

SHARDS = Path("data/shards")
BATCH, ROUNDS = 128, 5


def loader() -> Iterator[int]:
    """Shuffled batches as torch tensors, as training sees them."""
    split = open_split(SHARDS, "train")
    for batch in Loader(split, seed=0, window_shards=2, global_batch_size=BATCH).epoch(0):
        yield len(batch.images)


def plain_webdataset() -> Iterator[int]:
    """The same tars through webdataset: shard and sample shuffle, default decoding, batched."""
    tars = [str(path) for path in sorted((SHARDS / "train").glob("*.tar"))]
    data = webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).decode().to_tuple("npy", "cls")
    for images, _ in data.batched(BATCH):
        yield len(images)


def array_in_memory() -> Iterator[int]:
    """The limit: numpy fancy indexing of one array."""
    split = open_split(SHARDS, "train")
    images = split.images(np.arange(len(split)))
    order = np.random.default_rng(0).permutation(len(split))
    for at in range(0, len(order), BATCH):
        yield len(images[order[at : at + BATCH]])


def rate(read: Callable[[], Iterator[int]], limit: int) -> float:
    """Median over the rounds of samples a second; the first batch, which pays for opening, is not counted."""
    rates = []
    for _ in range(ROUNDS):
        batches = read()
        next(batches)
        count, start = 0, time.perf_counter()
        for rows in batches:
            count += rows
            if count >= limit:
                break
        rates.append(count / (time.perf_counter() - start))
    return statistics.median(rates)


if __name__ == "__main__":
    peer = rate(plain_webdataset, 10_000)
    for read in (plain_webdataset, loader, array_in_memory):
        found = peer if read is plain_webdataset else rate(read, 10**9)
        print(f"{read.__name__:<18}{found:>14,.0f} samples/s{found / peer:>10.1f} x webdataset")
