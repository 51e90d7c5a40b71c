"""Another sample rate: polyphase filtering with scipy, of any piece of a signal that need not be in memory as a whole.

The filter is the one of `scipy.signal.resample_poly`: a Kaiser window (beta 5), 20 times as many taps as the larger of
the two factors. What the new rate cannot hold is taken out before, which linear interpolation would fold into it.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Samples: TypeAlias = NDArray[np.float32]

MAX_FACTOR = 65_536  # a filter for more would take seconds and a hundred megabytes
_HALF = 10  # taps on each side, in units of the larger factor


def factors(rate: int, wanted: int) -> tuple[int, int]:
    """By how much to multiply and to divide the number of samples, in lowest terms."""
    common = math.gcd(rate, wanted)
    return wanted // common, rate // common


def resampled_length(samples: int, up: int, down: int) -> int:
    """How many samples `resampled` has of so many."""
    return -(-samples * up // down)


def resampled(read: Callable[[int, int], Samples], samples: int, up: int, down: int, start: int, stop: int) -> Samples:
    """Samples `start` to before `stop` at the new rate, [stop - start]; however it is cut, the signal is the same.

    Args:
        read: gives the samples from one place to before another at the old rate.
        samples: how many there are of those; before and after them is silence.
    """
    if up == down:
        return read(start, stop)
    from scipy.signal import resample_poly  # half a second to import

    margin = _HALF * max(up, down) // up + 1
    first = max(0, start * down // up - margin) // down * down  # a multiple, so that it falls on a new sample
    last = min(samples, -(-stop * down // up) + margin)
    skipped = start - first // down * up
    with np.errstate(invalid="ignore"):  # of samples that are infinite
        out: Samples = resample_poly(read(first, last), up, down, window=_filter(up, down))
    return out[skipped : skipped + stop - start]


@lru_cache(maxsize=4)
def _filter(up: int, down: int) -> Samples:
    from scipy.signal import firwin

    largest = max(up, down)
    return np.asarray(firwin(2 * _HALF * largest + 1, 1 / largest, window=("kaiser", 5.0)), np.float32)
