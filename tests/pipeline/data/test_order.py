"""The order of an epoch: every row once, the same for any number of ranks, resumed at any step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import ORDER_VERSION, order, rank_positions

shard_rows = st.lists(st.integers(1, 40), min_size=1, max_size=12)
seeds = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(shard_rows, seeds, st.integers(0, 1000), st.integers(1, 15))
def test_every_row_is_there_once(rows: list[int], seed: int, epoch: int, window: int) -> None:
    found = order(rows, seed=seed, epoch=epoch, window_shards=window)
    np.testing.assert_array_equal(np.sort(found), np.arange(sum(rows)))


@settings(deadline=None)
@given(shard_rows, seeds, st.integers(1, 5))
def test_a_window_holds_whole_shards(rows: list[int], seed: int, window: int) -> None:
    starts = np.concatenate([[0], np.cumsum(rows)])
    shard_of = np.searchsorted(starts, order(rows, seed=seed, epoch=0, window_shards=window), side="right") - 1
    place = 0
    while place < len(shard_of):
        members = list(dict.fromkeys(shard_of[place:].tolist()))[:window]
        stop = place + sum(rows[shard] for shard in members)
        assert set(shard_of[place:stop].tolist()) == set(members)
        place = stop


def test_epochs_and_seeds_differ() -> None:
    orders = {
        order([50, 50], seed=seed, epoch=epoch, window_shards=2).tobytes() for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9


def test_the_order_is_fixed_for_its_version() -> None:
    assert ORDER_VERSION == 1
    assert order([3, 2, 4], seed=7, epoch=1, window_shards=2).tolist() == [3, 6, 5, 4, 8, 7, 2, 0, 1]


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 9))
def test_ranks_divide_each_global_batch(rows: int, batch_size: int, world: int) -> None:
    for step in range(-(-rows // batch_size)):
        parts = [rank_positions(step, rows=rows, batch_size=batch_size, rank=r, world=world) for r in range(world)]
        real = np.concatenate([part.positions[part.weight == 1] for part in parts])
        expected = np.arange(step * batch_size, min(rows, (step + 1) * batch_size))
        np.testing.assert_array_equal(np.sort(real), expected)
        assert {len(part.positions) for part in parts} == {-(-len(expected) // world)}
        assert {part.global_rows for part in parts} == {len(expected)}
        for part in parts:
            np.testing.assert_array_equal(part.positions - step * batch_size, part.places)
            assert part.places.max() < len(expected)


def test_a_rank_takes_every_worldth_row() -> None:
    part = rank_positions(2, rows=100, batch_size=10, rank=1, world=4)
    assert part.positions.tolist() == [21, 25, 29]
    last = rank_positions(2, rows=100, batch_size=10, rank=3, world=4)
    assert (last.positions.tolist(), last.weight.tolist()) == ([23, 27, 29], [1, 1, 0])


@pytest.mark.parametrize("rows", [[], [1]])
def test_the_smallest_splits_have_an_order(rows: list[int]) -> None:
    assert order(rows, seed=0, epoch=0, window_shards=3).tolist() == list(range(sum(rows)))
