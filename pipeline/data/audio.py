"""Sound as 8-bit values and as files: mu-law both ways, and the bytes of a WAV file."""

import struct
from functools import cache

import numpy as np
from numpy.typing import NDArray

MU = 255
SILENCE = 128  # the code of 0


def mu_law_expand(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Amplitudes from -1 to 1 of companded values from -1 to 1, same shape: sgn(y) ((1 + mu)^|y| - 1) / mu.

    Source: ITU-T G.711, the characteristic that its segmented mu-law approximates, mu = 255; the inverse of
    F(x) = sgn(x) ln(1 + mu |x|) / ln(1 + mu).
    """
    companded = np.asarray(values, np.float64)
    amplitudes: NDArray[np.float64] = np.sign(companded) * np.expm1(np.abs(companded) * np.log1p(MU)) / MU
    return amplitudes


def mu_law_decode(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Amplitudes from -1 to 1 of the codes of `mu_law_encode`, same shape: the middle of what each code stands for."""
    table = mu_law_expand(np.arange(256) / 127.5 - 1).astype(np.float32)
    return table[codes]


def mu_law_encode(samples: NDArray[np.floating]) -> NDArray[np.uint8]:
    """8-bit codes of amplitudes, same shape: floor(127.5 (F(x) + 1) + 1/2), louder ones than -1 or 1 clipped.

    Not the code words of G.711, which invert bits and have two zeros. It compares with the amplitudes at which the code
    changes instead of taking a logarithm of each, so that machines cannot differ in a last bit.

    Source: van den Oord et al., arXiv:1609.03499, section 2.2, for 256 values from the continuous formula.
    """
    return np.searchsorted(_borders(), np.asarray(samples), side="right").astype(np.uint8)


def wav_bytes(samples: NDArray[np.floating], sample_rate: int) -> bytes:
    """A WAV file of 16-bit PCM.

    Args:
        samples: [T] or [T, channels], amplitudes from -1 to 1, louder ones are clipped.
        sample_rate: in Hz.
    """
    values = np.asarray(samples, np.float64)
    channels = 1 if values.ndim == 1 else values.shape[1]
    data = np.rint(np.clip(values, -1, 1) * 32767).astype("<i2").tobytes()
    form = struct.pack("<HHIIHH", 1, channels, sample_rate, sample_rate * channels * 2, channels * 2, 16)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


@cache
def _borders() -> NDArray[np.float32]:
    """The lowest amplitude of each code but the first, [255], rising."""
    return mu_law_expand((np.arange(1, 256) - 0.5) / 127.5 - 1).astype(np.float32)
