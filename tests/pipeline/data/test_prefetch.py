"""Work ahead of its use: in order, bounded, errors in their places, and no thread left behind."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from pipeline.data.prefetch import prefetch, read_ahead
from vae_core.batch import Batch

CPU = torch.device("cpu")


def batch(number: int) -> Batch:
    images = torch.full((2, 3, 4, 4), number, dtype=torch.uint8)
    return Batch(images=images, labels=None, weight=torch.ones(2), position=torch.arange(2), global_rows=2)


class Batches:
    """A stream of batches that counts them, fails at one of them if asked to, and knows whether it was closed."""

    def __init__(self, count: int, fail_at: int | None = None) -> None:
        self.given, self.closed = 0, False
        self._count, self._fail_at = count, fail_at

    def stream(self) -> Iterator[Batch]:
        try:
            for number in range(self._count):
                if number == self._fail_at:
                    raise ValueError(f"batch {number}")
                self.given += 1
                yield batch(number)
        finally:
            self.closed = True


def numbers(batches: Iterator[Batch]) -> list[int]:
    return [int(one.images[0, 0, 0, 0]) for one in batches]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_all_batches_come_in_order(count: int, depth: int) -> None:
    source = Batches(count)
    assert numbers(prefetch(source.stream(), CPU, depth)) == list(range(count))
    assert source.closed


def test_no_more_than_depth_batches_are_gathered_ahead() -> None:
    source = Batches(20)
    batches = prefetch(source.stream(), CPU, depth=3)
    assert source.given == 0, "nothing before it is asked for"
    for taken in range(1, 6):
        next(batches)
        deadline = time.monotonic() + 120
        while source.given < taken + 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert source.given == taken + 3
    batches.close()


def test_an_error_comes_after_the_batches_before_it() -> None:
    batches = prefetch(Batches(9, fail_at=4).stream(), CPU)
    assert [int(next(batches).images[0, 0, 0, 0]) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="batch 4"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_the_thread_ends_when_the_consumer_stops() -> None:
    before = threading.active_count()
    source = Batches(20)
    batches = prefetch(source.stream(), CPU)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
    assert source.closed


class Fetches:
    """Remembers what was fetched; the shards in `broken` cannot be."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.done: list[int] = []
        self._broken = broken

    def __call__(self, shard: int) -> None:
        if shard in self._broken:
            raise OSError(f"shard {shard}")
        self.done.append(shard)


ITEMS = [[0, 1], [1], [1, 2], [3], [2, 4], [5, 6]]


@pytest.mark.parametrize("depth", [1, 2, 3, 100])
def test_an_item_comes_once_its_shards_are_there(depth: int) -> None:
    fetch, seen = Fetches(), []
    for item in read_ahead(ITEMS, lambda item: item, fetch, depth):
        assert set(item) <= set(fetch.done)
        seen.append(item)
    assert seen == ITEMS
    assert sorted(fetch.done) == list(range(7)), "each once"


def test_no_more_than_depth_shards_are_fetched_ahead() -> None:
    fetch = Fetches()
    items = read_ahead([[shard] for shard in range(20)], lambda item: item, fetch, 3)
    for taken in range(1, 6):
        next(items)
        time.sleep(0.01)
        assert len(fetch.done) <= taken + 2


def test_a_shard_that_cannot_be_fetched_is_an_error_of_the_first_item_that_needs_it() -> None:
    before = threading.active_count()
    items = read_ahead(ITEMS, lambda item: item, Fetches(broken=(4,)), 100)
    assert [next(items) for _ in range(4)] == ITEMS[:4]
    with pytest.raises(OSError, match="shard 4"):
        next(items)
    assert threading.active_count() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_to_a_gpu_are_whole_when_they_are_used() -> None:
    gpu = torch.device("cuda", 0)
    images = torch.randint(0, 256, (64, 8, 64, 64, 3), dtype=torch.uint8)
    source = (Batch(part.permute(0, 3, 1, 2), None, torch.ones(8), torch.arange(8), global_rows=8) for part in images)
    for found, expected in zip(prefetch(source, gpu), images, strict=True):
        assert found.images.stride() == expected.permute(0, 3, 1, 2).stride()
        assert int(found.images.sum(dtype=torch.int64)) == int(expected.sum(dtype=torch.int64))
