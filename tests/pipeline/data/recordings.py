"""Small WAV files of every kind, built from the format's description and not by the code under test."""

import struct
from pathlib import Path

import numpy as np

RATE = 8000
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
Samples = np.ndarray


def tone(hertz: float, seconds: float, rate: int = RATE, loudness: float = 0.5) -> Samples:
    return loudness * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def chord(hertz: tuple[float, ...], seconds: float, rate: int = RATE) -> Samples:
    return sum(tone(each, seconds, rate, 0.8 / len(hertz)) for each in hertz)  # type: ignore[return-value]


def noise(seed: int, seconds: float, rate: int = RATE) -> Samples:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).clip(-1, 1)


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def riff(*chunks: bytes) -> bytes:
    content = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def form(kind: str, channels: int, rate: int, extensible: bool = False) -> bytes:
    """The chunk fmt of samples stored as u1, i2, i3, i4, f4 or f8."""
    width, tag = int(kind[1]), 3 if kind[0] == "f" else 1
    head = struct.pack("<HIIHH", channels, rate, rate * channels * width, channels * width, 8 * width)
    if not extensible:
        return chunk(b"fmt ", struct.pack("<H", tag) + head)
    more = struct.pack("<HHIH", 22, 8 * width, 0, tag) + GUID_TAIL
    return chunk(b"fmt ", struct.pack("<H", 0xFFFE) + head + more)


def stored(samples: Samples, kind: str) -> bytes:
    """Amplitudes from -1 to below 1 as `kind`, in rounded steps."""
    if kind[0] == "f":
        return samples.astype(f"<{kind}").tobytes()
    bits = 8 * int(kind[1])
    steps = np.rint(samples * 2.0 ** (bits - 1)).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int64)
    if kind == "u1":
        return (steps + 128).astype(np.uint8).tobytes()
    return steps.reshape(-1).astype("<i8").view(np.uint8).reshape(-1, 8)[:, : int(kind[1])].tobytes()


def wav(samples: Samples, kind: str = "i2", rate: int = RATE, extensible: bool = False) -> bytes:
    """A WAV file of [T] or [T, channels] amplitudes."""
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    return riff(form(kind, channels, rate, extensible), chunk(b"data", stored(samples, kind)))


def write_recordings(folder: Path, files: int, seconds: float = 0.3) -> Path:
    """`files` WAV files of three classes, of several rates and kinds and of unequal lengths."""
    kinds = ("i2", "i3", "f4", "u1")
    for number in range(files):
        name = ("chord", "noise", "tone")[number % 3]
        rate, length = (RATE, 11_025, 2 * RATE)[number // 3 % 3], seconds * (1 + number % 4 / 4)
        if name == "noise":
            samples = noise(number, length, rate)
        elif name == "tone":
            samples = tone(200 + 7 * number, length, rate)
        else:
            samples = chord((200 + 3 * number, 300 + 5 * number, 450 + 2 * number), length, rate)
        if number % 5 == 0:
            samples = np.stack([samples, samples / 2], 1)
        path = folder / name / f"{number:03d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav(samples, kinds[number % 4], rate, extensible=number % 7 == 0))
    return folder
