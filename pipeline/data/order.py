"""Which rows each rank sees at each step: pure functions of the seed, the epoch and the position.

The order of an epoch does not depend on the number of ranks. A rank takes its rows from the global batch by position,
so a run may go on with another number of ranks at any step, and every row is seen exactly once an epoch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION = 2  # raise it with any change to what `order` returns


def permutation(count: int, bits: np.random.Philox) -> NDArray[np.int64]:
    """A random order of range(count), from raw bits, which numpy keeps the same in all versions."""
    # Each number rides in the low bits of its key: no two keys are alike, so the fastest sort serves, and the result
    # is the same with any.
    low = np.uint64((1 << max(count - 1, 0).bit_length()) - 1)
    keys = (bits.random_raw(count) & ~low) | np.arange(count, dtype=np.uint64)
    keys.sort()
    return (keys & low).astype(np.int64)


def philox(seed: int, stream: int) -> np.random.Philox:
    """The generator of one stream (an epoch, a split) of a seed; both from 0 to 2^64 - 1."""
    return np.random.Philox(key=np.array([seed, stream], np.uint64))


def order(
    shard_rows: Sequence[int],
    *,
    seed: int,
    epoch: int,
    window_shards: int,
    generations: Sequence[int] | None = None,
    lanes: int = 1,
) -> NDArray[np.int64]:
    """The rows of a split in the order of an epoch: shards permuted, then rows shuffled in windows of shards.

    Only the shards of one window are read at a time, which is what a disk or an object store wants. Shards of all
    generations come in proportion, so that every window holds old and new rows.

    With several lanes the permuted shards are dealt out in equal runs of rows, a run a lane, each with its own windows,
    and position p of the epoch is a row of lane p % lanes. Where the number of ranks divides both the lanes and the
    batch, a rank therefore reads the shards of its own lanes alone, and ranks share no more than those at the borders.

    Args:
        shard_rows: rows of each shard.
        window_shards: shards a window, at least 1.
        generations: of each shard; None: they are of one.
        lanes: at least 1.

    Returns:
        int64 [N], each of 0 .. N-1 once, where row i counts through the shards in their own order.
    """
    bits = philox(seed, epoch)
    starts = np.concatenate([[0], np.cumsum(shard_rows, dtype=np.int64)])
    shards = _merged(np.zeros(len(shard_rows)) if generations is None else np.asarray(generations), bits)
    firsts, stops = starts[shards], starts[shards + 1]
    rows = np.empty(starts[-1], np.int64)
    for lane, (start, stop) in enumerate(_runs(len(rows), lanes)):
        rows[lane::lanes] = _shuffled(*_cut(firsts, stops, start, stop), window_shards, bits)
    return rows


def _merged(generations: NDArray[np.generic], bits: np.random.Philox) -> NDArray[np.int64]:
    """The numbers of all shards, those of each generation in random order and evenly spread."""
    shards = np.empty(len(generations), np.int64)
    places = np.empty(len(generations))
    for generation in np.unique(generations):
        here = np.flatnonzero(generations == generation)
        offset = (int(bits.random_raw()) >> 11) * 2.0**-53
        shards[here] = here[permutation(len(here), bits)]
        places[here] = (np.arange(len(here)) + offset) / len(here)
    return shards[np.argsort(places, kind="stable")]


def _runs(rows: int, lanes: int) -> Iterator[tuple[int, int]]:
    """`lanes` runs of range(rows), the first ones a row longer where they cannot be equal."""
    size, longer = divmod(rows, lanes)
    for lane in range(lanes):
        start = lane * size + min(lane, longer)
        yield start, start + size + (lane < longer)


def _cut(
    firsts: NDArray[np.int64], stops: NDArray[np.int64], start: int, stop: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of ranges firsts[i] .. stops[i] laid end to end, what lies from `start` to `stop`, as ranges again."""
    ends = np.cumsum(stops - firsts)
    left = np.maximum(start - (ends - (stops - firsts)), 0)
    right = np.maximum(ends - stop, 0)
    inside = left + right < stops - firsts
    return (firsts + left)[inside], (stops - right)[inside]


def _shuffled(
    firsts: NDArray[np.int64], stops: NDArray[np.int64], window: int, bits: np.random.Philox
) -> NDArray[np.int64]:
    """The rows of the ranges firsts[i] .. stops[i], shuffled within windows of `window` ranges."""
    windows = [np.empty(0, np.int64)]
    for at in range(0, len(firsts), window):
        ranges = zip(firsts[at : at + window].tolist(), stops[at : at + window].tolist(), strict=True)
        rows = np.concatenate([np.arange(first, stop) for first, stop in ranges])
        windows.append(rows[permutation(len(rows), bits)])
    return np.concatenate(windows)


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
