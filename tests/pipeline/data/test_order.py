"""The order of an epoch: every row once, the same for any number of ranks, resumed at any step."""

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.data.order import ORDER_VERSION, order, permutation, philox, rank_positions

quick = settings(max_examples=40)
shard_rows = st.lists(st.integers(1, 40), min_size=1, max_size=12)
seeds = st.integers(0, 2**64 - 1)


def shards_of(rows: Sequence[int], found: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.searchsorted(np.cumsum([0, *rows]), found, side="right") - 1


def generations_of(rows: Sequence[int], data: st.DataObject) -> list[int]:
    return sorted(data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows))))


@quick
@given(shard_rows, seeds, st.integers(0, 1000), st.integers(1, 15), st.integers(1, 20), st.data())
def test_every_row_is_there_once(
    rows: list[int], seed: int, epoch: int, window: int, lanes: int, data: st.DataObject
) -> None:
    found = order(
        rows, seed=seed, epoch=epoch, window_shards=window, generations=generations_of(rows, data), lanes=lanes
    )
    np.testing.assert_array_equal(np.sort(found), np.arange(sum(rows)))


@quick
@given(shard_rows, seeds, st.integers(1, 5), st.data())
def test_a_window_holds_whole_shards(rows: list[int], seed: int, window: int, data: st.DataObject) -> None:
    found = order(rows, seed=seed, epoch=0, window_shards=window, generations=generations_of(rows, data))
    shard_of = shards_of(rows, found)
    place = 0
    while place < len(shard_of):
        members = list(dict.fromkeys(shard_of[place:].tolist()))[:window]
        stop = place + sum(rows[shard] for shard in members)
        assert set(shard_of[place:stop].tolist()) == set(members)
        place = stop


@quick
@given(st.integers(1, 40), st.integers(1, 40), seeds, st.integers(1, 12))
def test_every_window_holds_old_and_new_shards_in_proportion(old: int, new: int, seed: int, window: int) -> None:
    generations = [0] * old + [1] * new
    found = order([1] * (old + new), seed=seed, epoch=0, window_shards=window, generations=generations)
    for start in range(0, old + new - window + 1, window):
        here = int((found[start : start + window] >= old).sum())
        assert abs(here - window * new / (old + new)) < 1 + 1e-9


def test_of_many_generations_each_is_spread_evenly() -> None:
    generations = [0] * 60 + [1] * 30 + [2] * 10
    found = order([1] * 100, seed=0, epoch=0, window_shards=1, generations=generations)
    for tenth in found.reshape(10, 10):
        old, newer, newest = ((tenth < 60).sum(), ((tenth >= 60) & (tenth < 90)).sum(), (tenth >= 90).sum())
        assert abs(old - 6) <= 2
        assert abs(newer - 3) <= 2
        assert newest <= 2


def test_a_generation_changes_the_order() -> None:
    rows = [10] * 6
    one = order(rows, seed=0, epoch=0, window_shards=2)
    np.testing.assert_array_equal(one, order(rows, seed=0, epoch=0, window_shards=2, generations=[0] * 6))
    assert one.tolist() != order(rows, seed=0, epoch=0, window_shards=2, generations=[0, 0, 0, 0, 1, 1]).tolist()


@quick
@given(shard_rows, seeds, st.integers(1, 5), st.integers(1, 9))
def test_lanes_are_equal_runs_of_the_permuted_shards(rows: list[int], seed: int, window: int, lanes: int) -> None:
    found = order(rows, seed=seed, epoch=0, window_shards=window, lanes=lanes)
    whole = order(rows, seed=seed, epoch=0, window_shards=1, lanes=1)  # its shards come in the permuted order
    permuted = list(dict.fromkeys(shards_of(rows, whole).tolist()))
    starts = np.cumsum([0, *rows])
    unshuffled = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in permuted])
    at = 0
    for lane in range(lanes):
        mine = found[lane::lanes]
        assert sorted(mine.tolist()) == sorted(unshuffled[at : at + len(mine)].tolist())
        at += len(mine)


@quick
@given(st.sampled_from([1, 2, 3, 4, 8, 16]), st.integers(1, 4), st.integers(1, 3), seeds, st.data())
def test_a_rank_reads_the_shards_of_its_own_lanes(
    world: int, lanes_each: int, batches_each: int, seed: int, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=60))
    lanes, batch_size = world * lanes_each, world * batches_each
    found = order(rows, seed=seed, epoch=1, window_shards=2, lanes=lanes)
    touched = 0
    for rank in range(world):
        mine = [
            part.positions[part.weight == 1]
            for step in range(-(-len(found) // batch_size))
            for part in [rank_positions(step, rows=len(found), batch_size=batch_size, rank=rank, world=world)]
        ]
        own = np.concatenate([found[lane::lanes] for lane in range(rank, lanes, world)])
        np.testing.assert_array_equal(np.sort(found[np.concatenate(mine)]), np.sort(own))
        touched += len(set(shards_of(rows, own).tolist()))
    assert touched <= len(rows) + lanes - 1


def test_epochs_and_seeds_differ() -> None:
    orders = {
        order([50, 50], seed=seed, epoch=epoch, window_shards=2).tobytes() for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9


def test_the_order_is_fixed_for_its_version() -> None:
    assert ORDER_VERSION == 2
    assert order([3, 2, 4], seed=7, epoch=1, window_shards=2).tolist() == [1, 7, 6, 5, 0, 8, 2, 4, 3]
    generations = [0, 0, 0, 1, 1]
    assert order([3, 2, 4, 2, 3], seed=7, epoch=1, window_shards=2, generations=generations, lanes=2).tolist() == [
        12, 9, 11, 1, 7, 2, 13, 10, 6, 0, 5, 4, 8, 3]  # fmt: skip


@quick
@given(st.integers(0, 300), seeds)
def test_a_permutation_is_that_of_its_random_numbers(count: int, seed: int) -> None:
    expected = np.argsort(philox(seed, 3).random_raw(count), kind="stable")
    np.testing.assert_array_equal(permutation(count, philox(seed, 3)), expected)


@quick
@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 16))
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


@quick
@given(shard_rows, st.integers(1, 30), st.integers(1, 12), st.lists(st.integers(1, 16), min_size=1, max_size=6))
def test_any_change_of_ranks_at_any_step_keeps_the_global_sequence(
    rows: list[int], batch_size: int, lanes: int, worlds: list[int]
) -> None:
    found = order(rows, seed=1, epoch=2, window_shards=2, lanes=lanes)
    seen = []
    for step, world in enumerate(islice(cycle(worlds), -(-len(found) // batch_size))):
        batch = np.full(min(batch_size, len(found) - step * batch_size), -1)
        for rank in range(world):
            part = rank_positions(step, rows=len(found), batch_size=batch_size, rank=rank, world=world)
            real = part.weight == 1
            batch[part.places[real]] = found[part.positions[real]]
        seen.append(batch)
    np.testing.assert_array_equal(np.concatenate(seen), found)


def test_a_rank_takes_every_worldth_row() -> None:
    part = rank_positions(2, rows=100, batch_size=10, rank=1, world=4)
    assert part.positions.tolist() == [21, 25, 29]
    last = rank_positions(2, rows=100, batch_size=10, rank=3, world=4)
    assert (last.positions.tolist(), last.weight.tolist()) == ([23, 27, 29], [1, 1, 0])


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("rows", [[], [1]])
def test_the_smallest_splits_have_an_order(rows: list[int], lanes: int) -> None:
    assert order(rows, seed=0, epoch=0, window_shards=3, lanes=lanes).tolist() == list(range(sum(rows)))
