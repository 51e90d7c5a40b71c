"""Pure functions of the global step."""

import math


def one_cycle(step: int, *, total_steps: int, peak: float, warmup_fraction: float) -> float:
    """Learning rate: linear from peak / 25 to `peak` over the warm-up, then along a cosine to peak / 10,000.

    Source: Smith & Topin, arXiv:1708.07120.
    """
    warmup = int(warmup_fraction * total_steps)
    if step < warmup:
        return peak * (1 + 24 * step / warmup) / 25
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * (1e-4 + (1 - 1e-4) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
