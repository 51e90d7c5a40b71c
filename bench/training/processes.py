"""A process for each system: its peak of memory is its own, and while one works the others wait."""

import gc
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

import torch

from bench.training.clock import Clock, Enough
from bench.training.systems import System

P, T = ParamSpec("P"), TypeVar("T")


class Processes:
    """They start when they are first called, and end with the block.

    Args:
        apart: a process for each name; else one for all, which starts sooner.
        threads: of torch in each.
    """

    def __init__(self, *, apart: bool, threads: int) -> None:
        self._apart, self._threads = apart, threads
        self._pools: dict[str, ProcessPoolExecutor] = {}

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)

    def call(self, name: str, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """What `function`, a module's own, gives in the process of `name`."""
        name = name if self._apart else ""
        if name not in self._pools:
            self._pools[name] = ProcessPoolExecutor(1, get_context("spawn"), _begin, (self._threads,))
        return self._pools[name].submit(function, *args, **named).result()


def _begin(threads: int) -> None:
    """In a process of its own: with so many threads, and for as long as the one that started it lives."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def rate(system: System, epochs: int) -> float:
    """Images a second of the epochs after the first."""
    clock = Clock(epochs)
    with suppress(Enough):
        system.fit(system.run, clock)
    gc.collect()
    rows = system.run.reading.manifest().counts["train"]
    return rows * (epochs - 1) / (clock.seconds[-1] - clock.seconds[0])


def descent(system: System, epochs: int, target: float) -> tuple[list[float], list[float]]:
    """Seconds and validation -ELBO at the end of each epoch, until it is at `target` or the epochs are over."""
    clock = Clock(epochs, target)
    with suppress(Enough):
        system.fit(system.run, clock)
    return clock.seconds, clock.figures


def peak_bytes() -> int:
    """The most memory that this process has had in RAM."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024
