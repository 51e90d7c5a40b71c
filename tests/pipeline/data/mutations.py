"""Damage to files: what disks, networks, tools and people do to bytes, drawn from a seed."""

import struct
from collections.abc import Callable, Iterator

import numpy as np

Random = np.random.Generator
EXTREMES = [struct.pack(form, value) for form in ("<I", ">I", "<Q") for value in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF)]


def mutants(data: bytes, count: int, seed: int, *, step: int = 1) -> Iterator[bytes]:
    """`count` times `data` with damage, never without.

    Args:
        step: places at which pieces are cut out, moved and put in are multiples of it, such as the blocks of a tar.
    """
    random = np.random.Generator(np.random.Philox(seed))
    found = 0
    while found < count:
        kind = KINDS[int(random.integers(len(KINDS)))]
        mutant = kind(data, random, step)
        if mutant != data:
            found += 1
            yield mutant


def flip(data: bytes, random: Random, step: int) -> bytes:
    """One to three bits anywhere."""
    out = bytearray(data)
    for place in random.integers(len(data), size=random.integers(1, 4)).tolist():
        out[place] ^= 1 << int(random.integers(8))
    return bytes(out)


def edit_ends(data: bytes, random: Random, step: int) -> bytes:
    """A byte near the start or the end, where headers, footers and directories are."""
    out = bytearray(data)
    place = min(int(random.integers(64)), len(data) - 1)
    out[place if random.random() < 0.5 else -1 - place] = int(random.integers(256))
    return bytes(out)


def extreme(data: bytes, random: Random, step: int) -> bytes:
    """A length or offset that is none."""
    number = EXTREMES[int(random.integers(len(EXTREMES)))]
    place = int(random.integers(max(1, len(data) - len(number))))
    return data[:place] + number + data[place + len(number) :]


def cut(data: bytes, random: Random, step: int) -> bytes:
    return data[: _place(data, random, step)]


def take_out(data: bytes, random: Random, step: int) -> bytes:
    first, stop = sorted(_place(data, random, step) for _ in range(2))
    return data[:first] + data[stop:]


def insert(data: bytes, random: Random, step: int) -> bytes:
    place, size = _place(data, random, step), int(random.integers(1, 9)) * step
    return data[:place] + random.bytes(size) + data[place:]


def repeat(data: bytes, random: Random, step: int) -> bytes:
    first, stop = sorted(_place(data, random, step) for _ in range(2))
    return data[:stop] + data[first:stop] + data[stop:]


def zero(data: bytes, random: Random, step: int) -> bytes:
    """A block that was never written to the disk."""
    place = _place(data, random, step)
    size = min(len(data) - place, int(random.integers(1, 65)) * step)
    return data[:place] + bytes(size) + data[place + size :]


def swap(data: bytes, random: Random, step: int) -> bytes:
    """Two pieces of one length in each other's place."""
    size = max(step, len(data) // 8 // step * step)
    first, second = sorted(_place(data, random, step) for _ in range(2))
    if second - first < size or second + size > len(data):
        return data
    one, other = data[first : first + size], data[second : second + size]
    return data[:first] + other + data[first + size : second] + one + data[second + size :]


KINDS: tuple[Callable[[bytes, Random, int], bytes], ...] = (
    flip, flip, edit_ends, extreme, cut, take_out, insert, repeat, zero, swap,
)  # fmt: skip


def _place(data: bytes, random: Random, step: int) -> int:
    return int(random.integers(len(data) // step + 1)) * step
