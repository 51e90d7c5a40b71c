"""Codes <-> bytes, at the cost that a prior gives them: asymmetric numeral systems (Duda, arXiv:1311.2540).

One coder's state runs through all images of a file, so a file is HEADER.size + 8 bytes at most longer than the codes
themselves cost, whatever their number.

Encoder and decoder must agree on every probability to the last bit. Both take them from `CodePrior.walk`, in float64,
on the CPU, for the same rows at a time, and round the logits to multiples of 1 / STEPS; all that follows is arithmetic
of whole numbers. So the decoder is exact wherever it runs the same instructions as the encoder. On another processor,
number of threads or release of torch the logits differ by some 1e-14, and one in some 1e11 may be rounded the other
way: a checksum of the codes turns that into an error. What is promised is the codes that were given, or a ValueError.
"""

import copy
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from decimal import Context, Decimal
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_core.priors.files import describe_prior
from vae_core.priors.pixelcnn import CodePrior
from vae_core.serialize import dump_tensors

STEPS = 64  # of a logit; rounding to them costs 1e-5 nats a code
PRECISION = 24  # bits: probabilities are multiples of 2^-24
TOTAL = 1 << PRECISION
LOWEST = 1 << 32  # the coder's state is at least this and below 2^64
ROWS = 128  # images evaluated together: part of the format, since other shapes may sum in another order
HEADER = struct.Struct("<4sIIII")  # MAGIC, checksum of all that follows it, images, checksums of prior and of codes
MAGIC = b"VQP1"
OTHER_ARITHMETIC = (
    "codes: this machine computes other probabilities than the one that wrote them; decode with the same release of "
    "torch on the same kind of processor"
)

Integers = NDArray[np.int64]


def encode_codes(prior: CodePrior, codes: Sequence[Tensor], c: Tensor | None) -> bytes:
    """The codes of some images as bytes, within a few bytes of `coded_bits`.

    Args:
        codes: int64 [B, *grid] of each level.
        c: [B, E], or None; the decoder must be given the same.

    Raises:
        ValueError: codes or condition do not fit the prior.
    """
    exact, codes, c = _exact(prior), _checked(prior, codes), _on_cpu(c)
    starts, sizes = [], []
    for part in _parts(len(codes[0])):
        start, size = _intervals(exact, [one[part] for one in codes], None if c is None else c[part])
        starts.append(start)
        sizes.append(size)
    body = _pack(np.concatenate([np.empty(0, np.int64), *starts]), np.concatenate([np.empty(0, np.int64), *sizes]))
    followed = struct.pack("<III", len(codes[0]), _identity(prior, c), _checksum(codes)) + body
    return MAGIC + struct.pack("<I", zlib.crc32(followed)) + followed


def decode_codes(prior: CodePrior, data: bytes, c: Tensor | None) -> tuple[Tensor, ...]:
    """The codes that `encode_codes` was given: int64 [B, *grid] of each level, on the CPU.

    Raises:
        ValueError: the bytes are damaged or something else, belong to another prior or condition, or this machine's
            arithmetic differs from that of the machine that wrote them.
    """
    count, checksum, body = _read_header(prior, data, _on_cpu(c))
    exact, c, unpacker = _exact(prior), _on_cpu(c), _Unpacker(body)
    decoded = [
        exact.walk(part.stop - part.start, None if c is None else c[part], unpacker.choose) for part in _parts(count)
    ]
    empty = tuple(torch.empty(0, *grid, dtype=torch.int64) for grid in prior.grids)
    codes = tuple(torch.cat(level) for level in zip(empty, *decoded, strict=True))
    if not unpacker.ended or _checksum(codes) != checksum:
        raise ValueError(OTHER_ARITHMETIC)
    return codes


@torch.no_grad()
def coded_bits(prior: CodePrior, codes: Sequence[Tensor], c: Tensor | None) -> Tensor:
    """Bits that the codes of each image take in `encode_codes`, header and end apart: float64 [B].

    Raises:
        ValueError: codes or condition do not fit the prior.
    """
    exact, codes, c = _exact(prior), _checked(prior, codes), _on_cpu(c)
    bits = torch.zeros(len(codes[0]), dtype=torch.float64)
    for part in _parts(len(bits)):
        rows = [one[part] for one in codes]
        for logits, chosen in zip(exact.logits(rows, None if c is None else c[part]), rows, strict=True):
            counts = torch.from_numpy(frequencies(logits.flatten(0, -2)))
            taken = counts.gather(1, chosen.reshape(-1, 1)).double() / TOTAL
            bits[part] -= taken.log2().view(len(chosen), -1).sum(1)
    return bits


def frequencies(logits: Tensor) -> Integers:
    """Probabilities in units of 2^-24, int64 [B, K]: at least 1 each, 2^24 in sum.

    Exact: a function of the logits, float64 [B, K], rounded to multiples of 1 / 64, on any machine.

    Raises:
        ValueError: a logit is not finite, or there are too many codes.
    """
    if not torch.isfinite(logits).all():
        raise ValueError("prior: a logit is not finite")
    codes = logits.shape[1]
    if codes > 1 << 16:
        raise ValueError(f"prior: expected at most {1 << 16} codes, got {codes}")
    steps = (logits * STEPS).round()
    below = (steps.amax(1, keepdim=True) - steps).clamp(max=len(_exponentials()) - 1).long().numpy()
    weights = _exponentials()[below]
    shares: Integers = 1 + weights * (TOTAL - codes) // weights.sum(1, keepdims=True)
    shares[np.arange(len(shares)), below.argmin(1)] += TOTAL - shares.sum(1)
    return shares


@cache
def _exponentials() -> Integers:
    """2^38 exp(-n / 64), rounded down, for n = 0, 1, ... to the first 0; by decimal arithmetic, the same everywhere."""
    context, values = Context(prec=30), [1 << 38]
    while values[-1] > 0:
        values.append(int(context.multiply(context.exp(Decimal(-len(values)) / STEPS), Decimal(1 << 38))))
    return np.array(values, dtype=np.int64)


def _intervals(exact: CodePrior, codes: Sequence[Tensor], c: Tensor | None) -> tuple[Integers, Integers]:
    """Start and size of the interval of each code, in the order of decoding: position after position, all images."""
    starts, sizes = [], []
    planes = [one.reshape(len(one), -1) for one in codes]

    def given(level: int, position: int, logits: Tensor) -> Tensor:
        chosen, shares = planes[level][:, position], frequencies(logits)
        at = (np.arange(len(shares)), chosen.numpy())
        sizes.append(shares[at])
        starts.append(shares.cumsum(1)[at] - shares[at])
        return chosen

    exact.walk(len(codes[0]), c, given)
    return np.concatenate(starts), np.concatenate(sizes)


def _pack(starts: Integers, sizes: Integers) -> bytes:
    """State, then words of 32 bits in the order of reading. The coder is a stack, so it writes the last code first."""
    state, words = LOWEST, []
    for start, size in zip(starts[::-1].tolist(), sizes[::-1].tolist(), strict=True):
        if state >= size << (64 - PRECISION):
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // size << PRECISION) + state % size + start
    return struct.pack("<Q", state) + np.array(words[::-1], dtype="<u4").tobytes()


class _Unpacker:
    """Reads what `_pack` wrote, given the probabilities again."""

    def __init__(self, body: bytes) -> None:
        self._state = int.from_bytes(body[:8], "little")
        self._words: Iterator[int] = iter(np.frombuffer(body, "<u4", offset=8).tolist())

    def choose(self, level: int, position: int, logits: Tensor) -> Tensor:
        """The next code of each image, int64 [B]."""
        shares = frequencies(logits)
        ends = shares.cumsum(1)
        chosen = [self._next(end, share) for end, share in zip(ends, shares, strict=True)]
        return torch.tensor(chosen, dtype=torch.int64)

    @property
    def ended(self) -> bool:
        """Everything was read, and the coder is back where it began."""
        return self._state == LOWEST and next(self._words, None) is None

    def _next(self, ends: Integers, shares: Integers) -> int:
        slot = self._state & (TOTAL - 1)
        code = int(ends.searchsorted(slot, side="right"))
        share = int(shares[code])
        self._state = share * (self._state >> PRECISION) + slot - (int(ends[code]) - share)
        if self._state < LOWEST:
            word = next(self._words, None)
            if word is None:  # and not after all images: the header may promise any number of them
                raise ValueError(OTHER_ARITHMETIC)
            self._state = self._state << 32 | word
        return code


def _read_header(prior: CodePrior, data: bytes, c: Tensor | None) -> tuple[int, int, bytes]:
    """Images, checksum of their codes, and the body."""
    if len(data) < HEADER.size + 8 or data[:4] != MAGIC:
        raise ValueError(f"codes: expected bytes that encode_codes wrote, got {len(data)} others")
    _, whole, count, identity, checksum = HEADER.unpack_from(data)
    if len(data) % 4 or zlib.crc32(data[8:]) != whole:
        raise ValueError(f"codes: these {len(data)} bytes are damaged or cut off")
    if identity != _identity(prior, c):
        raise ValueError("codes: these bytes were written with another prior or condition")
    return count, checksum, data[HEADER.size :]


def _identity(prior: CodePrior, c: Tensor | None) -> int:
    """A checksum of the prior and of what it is conditioned on."""
    found = zlib.crc32(json.dumps(describe_prior(prior), sort_keys=True).encode())
    found = zlib.crc32(dump_tensors(prior.state_dict()), found)
    return found if c is None else zlib.crc32(c.numpy().tobytes(), found)


def _checksum(codes: Sequence[Tensor]) -> int:
    found = 0
    for one in codes:
        found = zlib.crc32(one.contiguous().numpy().astype("<i8").tobytes(), found)
    return found


def _exact(prior: CodePrior) -> CodePrior:
    return copy.deepcopy(prior).to("cpu", torch.float64).eval()


def _on_cpu(c: Tensor | None) -> Tensor | None:
    return None if c is None else c.detach().to("cpu", torch.float32).contiguous()


def _checked(prior: CodePrior, codes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The codes on the CPU.

    Raises:
        ValueError: their shapes or values are not those of the prior.
    """
    prior.check_codes(codes)
    for one in codes:
        if len(one) and not 0 <= int(one.min()) <= int(one.max()) < prior.num_codes:
            raise ValueError(f"codes: expected whole numbers from 0 to {prior.num_codes - 1}, got {int(one.min())} to "
                             f"{int(one.max())}")  # fmt: skip
    return tuple(one.detach().cpu() for one in codes)


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, ROWS):
        yield slice(start, min(start + ROWS, count))
