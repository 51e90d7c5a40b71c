"""Work done ahead of its use, in threads: batches for a device, shards from another place."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from vae_core.batch import Batch

FETCHES = 4  # shards that are fetched at once

Item = TypeVar("Item")


def prefetch(batches: Iterable[Batch], device: torch.device, depth: int = 2) -> Generator[Batch, None, None]:
    """`batches` on `device`, the next `depth` of them gathered and copied by one thread meanwhile.

    An error of `batches` comes in its place, after the batches before it. The thread ends with the generator.
    """
    iterator = iter(batches)
    copies = _Copies(device) if device.type == "cuda" else None

    def start() -> tuple[Batch, torch.cuda.Event | None] | None:
        batch = next(iterator, None)
        if batch is None:
            return None
        return copies.start(batch) if copies else (batch.to(device), None)

    with ThreadPoolExecutor(1, "prefetch") as pool:
        coming = deque(pool.submit(start) for _ in range(depth))
        try:
            while (started := coming.popleft().result()) is not None:
                coming.append(pool.submit(start))
                batch, copied = started
                if copies and copied:
                    copies.finish(batch, copied)
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)
            _close(iterator)


class _Copies:
    """Copies to a GPU on a stream of their own, beside the work of the stream that the batches are for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(self._stream):
            copy = batch.apply(Tensor.pin_memory).to(self._device)  # only from pinned memory do copies run beside
            return copy, self._stream.record_event()

    def finish(self, batch: Batch, copied: torch.cuda.Event) -> None:
        """Let the current stream wait for the copy, and keep its memory from reuse until that stream is done."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        for _, tensor in batch.tensors():
            tensor.record_stream(current)


def read_ahead(
    items: Iterable[Item], needs: Callable[[Item], Iterable[int]], fetch: Callable[[int], object], depth: int
) -> Generator[Item, None, None]:
    """`items` again, each once `fetch` has run for every shard that it needs, while the next shards are fetched.

    A shard is fetched once, the first time that an item needs it. At most `depth` shards are fetched or being fetched
    for items that are still to come, or those of one item where it alone needs more. An error of `fetch` comes in
    place of the first item that needs the shard.
    """
    iterator = iter(items)
    seen: set[int] = set()
    coming: deque[tuple[Item, list[Future[object]]]] = deque()
    ahead = 0
    with ThreadPoolExecutor(FETCHES, "fetch") as pool:
        try:
            while True:
                while ahead < depth and (item := next(iterator, None)) is not None:
                    new = [shard for shard in needs(item) if shard not in seen]
                    seen.update(new)
                    ahead += len(new)
                    coming.append((item, [pool.submit(fetch, shard) for shard in new]))
                if not coming:
                    return
                item, fetches = coming.popleft()
                for fetched in fetches:
                    fetched.result()
                ahead -= len(fetches)
                yield item
        finally:
            pool.shutdown(cancel_futures=True)
            _close(iterator)


def _close(iterator: Iterator[object]) -> None:
    """End a generator now, not when it is collected, so that what it holds open is closed."""
    if isinstance(iterator, Generator):
        iterator.close()
