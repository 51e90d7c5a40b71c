"""How it is measured: on one core, for a while, several times, all contenders in turn."""

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.data.readers import Contender, Pair, Reader

CORES = os.sched_getaffinity(0)


@contextmanager
def cores(count: int | None) -> Iterator[None]:
    """Keep this thread, and those that it starts, on the first `count` cores; None: on all."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(CORES)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def opened(contender: Contender) -> Iterator[Reader]:
    with cores(None if contender.all_cores else 1):
        reader = contender.open()
        try:
            yield reader
        finally:
            reader.close()
            del reader
            gc.collect()


def in_turn(contenders: Sequence[Contender], rounds: int, measure: Callable[[Contender], float]) -> dict[str, float]:
    """The median of each over `rounds`, in each of which every contender has its turn."""
    here = [contender for contender in contenders if not contender.missing]
    found: dict[str, list[float]] = {contender.name: [] for contender in here}
    for _ in range(rounds):
        for contender in here:
            found[contender.name].append(measure(contender))
    return {name: statistics.median(values) for name, values in found.items()}


def warm(contender: Contender, seconds: float) -> float:
    """Samples a second over epochs back to back for `seconds`, with the start of each epoch, after opening."""
    with opened(contender) as reader:
        start, rows = time.perf_counter(), 0
        for batch in _epochs(reader):
            rows += len(batch[1])
            if time.perf_counter() - start > seconds:
                break
        return rows / (time.perf_counter() - start)


def cold(contender: Contender, seconds: float) -> float:
    """Samples a second over one epoch, or `seconds` of it, that begins with none of the files in the page cache."""
    with opened(contender) as reader:
        if contender.files is not None:
            drop(contender.files)
        start, rows = time.perf_counter(), 0
        for images, _ in reader.epoch(0):
            rows += len(images)
            if time.perf_counter() - start > seconds:
                break
        return rows / (time.perf_counter() - start)


def first_batch(contender: Contender) -> float:
    """Seconds from opening to the first batch."""
    with cores(1):
        start = time.perf_counter()
        reader = contender.open()
        batches = reader.epoch(0)
        next(batches)
        elapsed = time.perf_counter() - start
        del batches
        reader.close()
        del reader
        gc.collect()
        return elapsed


def mixing(contender: Contender, classes: int) -> float:
    """Mean total variation between the labels of a batch and those of all batches of the epoch."""
    with opened(contender) as reader:
        batches = [np.bincount(labels.numpy(), minlength=classes) for _, labels in reader.epoch(0)]
    counts = np.stack(batches)[:-1]  # the last one may be short
    share = counts / counts.sum(1, keepdims=True)
    whole = np.sum(batches, 0) / np.sum(batches)
    return float(np.abs(share - whole).sum(1).mean() / 2)


def iid_mixing(batch: int, classes: int) -> float:
    """The same for labels drawn at random."""
    share = np.random.default_rng(0).multinomial(batch, np.full(classes, 1 / classes), 10_000) / batch
    return float(np.abs(share - 1 / classes).sum(1).mean() / 2)


def drop(files: Path) -> None:
    """Ask the kernel to forget the content of the files below a folder."""
    for path in _files(files):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # a page that is not yet written stays
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def can_drop(files: Path) -> bool:
    """Whether `drop` works where these files are; it does not where they are kept in memory only."""
    path = max(_files(files), key=lambda file: file.stat().st_size)
    drop(path)
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(1)], path.stat().st_size // 2, os.RWF_NOWAIT) == 0
        except BlockingIOError:
            return True
        except OSError:
            return False


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]


def _epochs(reader: Reader) -> Iterator[Pair]:
    number = 0
    while True:
        yield from reader.epoch(number)
        number += 1
