"""WAV files, read strictly: what the header says, checked against the file, and frames as amplitudes from -1 to 1.

The standard library's `wave` knows neither floating point nor, in all Python versions, WAVE_FORMAT_EXTENSIBLE.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
MAX_CHANNELS = 64
RATES = (1000, 768_000)  # Hz
_MAX_CHUNKS = 1000  # before the samples: each costs a read
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")  # of the formats that also have a tag
_NAMES = {2: "Microsoft ADPCM", 6: "A-law", 7: "mu-law", 17: "IMA ADPCM", 80: "MPEG", 85: "MP3", 255: "AAC"}
_WIDTHS = {(PCM, 8): "u1", (PCM, 16): "<i2", (PCM, 24): "i3", (PCM, 32): "<i4", (FLOAT, 32): "<f4", (FLOAT, 64): "<f8"}


class BadWav(Exception):
    """A file that cannot be used: `error` is the ledger's short name for why, the message its detail."""

    def __init__(self, error: str, detail: str) -> None:
        super().__init__(detail)
        self.error = error


class WavFormat(NamedTuple):
    """What a WAV file holds.

    Attributes:
        rate: frames a second.
        frames: each of one sample a channel.
        sample: how a sample is stored, as numpy writes it; i3: 24 bits.
        data_at: bytes before the first frame.
    """

    rate: int
    channels: int
    frames: int
    sample: str
    data_at: int

    @property
    def frame_bytes(self) -> int:
        return self.channels * int(self.sample[-1])


def read_format(file: BinaryIO) -> WavFormat:
    """The format of a WAV file of which nothing is missing.

    Raises:
        BadWav: not_wav, truncated, wav_malformed, unknown_codec, sample_rate or no_samples.
        OSError: it cannot be read.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(12)
    if len(start) < 12 or start[:4] != b"RIFF" or start[8:] != b"WAVE":
        found = f"{start[:4]!r} ... {start[8:]!r}" if start else "an empty file"
        raise BadWav("not_wav", f"expected RIFF and WAVE at the start, found {found}")
    end = 8 + int.from_bytes(start[4:8], "little")
    if end > size + 1:  # many writers leave out the byte that would make the length even
        raise BadWav("truncated", f"its header promises {end:,} bytes, found {size:,}")
    form: WavFormat | None = None
    for name, at, length in _chunks(file, end):
        if name == b"fmt " and form is None:
            form = _format(_exactly(file, at, min(length, 40)))
        elif name == b"data":
            return _with_data(form, at, length, min(end, size))
    raise BadWav("wav_malformed", f"no samples (chunk data) within the {end:,} bytes that its header promises")


def read_frames(file: BinaryIO, form: WavFormat, start: int, stop: int) -> NDArray[np.float32]:
    """The mean over the channels of frames `start` to before `stop`, [stop - start]; full scale is from -1 to 1.

    Samples in floating point can be louder, infinite or NaN.

    Raises:
        BadWav: truncated.
        OSError: it cannot be read.
    """
    data = _exactly(file, form.data_at + start * form.frame_bytes, (stop - start) * form.frame_bytes)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite then, which the reader of the samples must look for
        samples = _amplitudes(data, form.sample)
        return samples if form.channels == 1 else np.mean(samples.reshape(-1, form.channels), 1, np.float32)


def _amplitudes(data: bytes, sample: str) -> NDArray[np.float32]:
    if sample == "i3":
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return _amplitudes(wide.tobytes(), "<i4")
    values = np.frombuffer(data, sample)
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    if sample == "u1":
        return (values.astype(np.float32) - np.float32(128)) / np.float32(128)
    return values.astype(np.float32) / np.float32(2.0 ** (8 * values.dtype.itemsize - 1))


def _chunks(file: BinaryIO, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name of each chunk, and where and how long its content says it is."""
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > end:
            return
        name, length = struct.unpack("<4sI", _exactly(file, at, 8))
        yield name, at + 8, length
        at += 8 + length + length % 2
    raise BadWav("wav_malformed", f"no samples within its first {_MAX_CHUNKS:,} chunks")


def _format(data: bytes) -> WavFormat:
    """From the content of the chunk fmt; without frames yet."""
    if len(data) < 16:
        raise BadWav("wav_malformed", f"expected at least 16 bytes in its chunk fmt, found {len(data)}")
    tag, channels, rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", data[:16])
    if tag == EXTENSIBLE:
        tag = int.from_bytes(data[24:26], "little") if data[26:40] == _GUID_TAIL else EXTENSIBLE
    sample = _WIDTHS.get((tag, bits))
    if sample is None:
        found = f"{_NAMES.get(tag, f'format {tag}')} of {bits} bits"
        raise BadWav("unknown_codec", f"expected PCM of 8, 16, 24 or 32 bits or float of 32 or 64, found {found}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise BadWav("wav_malformed", f"expected 1 to {MAX_CHANNELS} channels, found {channels:,}")
    if not RATES[0] <= rate <= RATES[1]:
        raise BadWav("sample_rate", f"expected from {RATES[0]:,} to {RATES[1]:,} Hz, found {rate:,}")
    if frame_bytes != channels * bits // 8:
        expected = f"{channels * bits // 8} bytes for {channels} channels of {bits} bits"
        raise BadWav("wav_malformed", f"expected frames of {expected}, found {frame_bytes}")
    return WavFormat(rate, channels, 0, sample, 0)


def _with_data(form: WavFormat | None, at: int, length: int, end: int) -> WavFormat:
    if form is None:
        raise BadWav("wav_malformed", "its samples come before their format (chunk fmt)")
    if length == 0:
        raise BadWav("no_samples", "its chunk data is empty")
    if at + length > end:
        raise BadWav("truncated", f"expected {length:,} bytes of samples, found {max(0, end - at):,}")
    if length % form.frame_bytes:
        raise BadWav("wav_malformed", f"expected whole frames of {form.frame_bytes} bytes, found {length:,} bytes")
    return form._replace(frames=length // form.frame_bytes, data_at=at)


def _exactly(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    data = file.read(size)
    if len(data) != size:
        raise BadWav("truncated", f"expected {size:,} bytes at {at:,}, found {len(data):,}")
    return data
