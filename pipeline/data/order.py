"""Which rows each rank sees at each step: pure functions of the seed, the epoch and the position.

The order of an epoch does not depend on the number of ranks. A rank takes its rows from the global batch by position,
so a run may go on with another number of ranks at any step, and every row is seen exactly once an epoch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION = 1  # raise it with any change to what `order` returns


def permutation(count: int, bits: np.random.Philox) -> NDArray[np.int64]:
    """A random order of range(count), from raw bits, which numpy keeps the same in all versions."""
    return np.argsort(bits.random_raw(count), kind="stable").astype(np.int64)


def philox(seed: int, stream: int) -> np.random.Philox:
    """The generator of one stream (an epoch, a split) of a seed; both from 0 to 2^64 - 1."""
    return np.random.Philox(key=np.array([seed, stream], np.uint64))


def order(shard_rows: Sequence[int], *, seed: int, epoch: int, window_shards: int) -> NDArray[np.int64]:
    """The rows of a split in the order of an epoch: shards permuted, then rows shuffled in windows of shards.

    Only the shards of one window are read at a time, which is what a disk or an object store wants.

    Args:
        shard_rows: rows of each shard.
        window_shards: shards a window, at least 1.

    Returns:
        int64 [N], each of 0 .. N-1 once, where row i counts through the shards in their own order.
    """
    bits = philox(seed, epoch)
    starts = np.concatenate([[0], np.cumsum(shard_rows)])
    shards = permutation(len(shard_rows), bits)
    windows = []
    for at in range(0, len(shards), window_shards):
        rows = [np.arange(starts[shard], starts[shard + 1]) for shard in shards[at : at + window_shards]]
        window = np.concatenate(rows)
        windows.append(window[permutation(len(window), bits)])
    return np.concatenate(windows) if windows else np.empty(0, np.int64)


class RankRows(NamedTuple):
    """The part of a global batch that one rank takes; the same length on every rank.

    Attributes:
        positions: int64 [B], places in the epoch's order.
        places: int64 [B], places in the global batch.
        weight: float32 [B]; 1, or 0 for padding, which repeats the last row of the global batch.
        global_rows: rows of the global batch.
    """

    positions: NDArray[np.int64]
    places: NDArray[np.int64]
    weight: NDArray[np.float32]
    global_rows: int


def rank_positions(step: int, *, rows: int, batch_size: int, rank: int = 0, world: int = 1) -> RankRows:
    """Rank `rank` of `world` in global batch `step`: every `world`-th of its rows, padded to the same length.

    Args:
        rows: rows of the split; global batch `step` is positions step * batch_size up to (step + 1) * batch_size.
    """
    start = step * batch_size
    count = min(rows - start, batch_size)
    places = rank + world * np.arange(-(-count // world), dtype=np.int64)
    real = places < count
    places = np.minimum(places, count - 1)
    return RankRows(start + places, places, real.astype(np.float32), count)
