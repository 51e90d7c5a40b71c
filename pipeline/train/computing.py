"""How torch computes wherever a run is trained or judged, so that the same steps give the same bits."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """With so many threads of torch, and zero for numbers below 2^-126 in size.

    CPUs take many times longer over those, and there are more and more of them: Adam's moments of a pixel that is
    hardly ever set halve every few steps. Threads take it over from the one that starts them, so the block must be
    entered before a thread's first step.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)
