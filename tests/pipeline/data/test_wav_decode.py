"""Sound as numbers: mu-law, WAV files of every kind that is read and the reasons for those that are not, resampling."""

import io
import os
import struct
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import chunk, form, noise, riff, stored, tone, wav
from scipy.io import wavfile
from scipy.signal import resample_poly

from pipeline.data.audio import SILENCE, mu_law_decode, mu_law_encode, wav_bytes
from pipeline.data.sources.resample import factors, resampled, resampled_length
from pipeline.data.sources.wav_decode import BadWav, WavFormat, read_format, read_frames

KINDS = ("u1", "i2", "i3", "i4", "f4", "f8")
STEP = {"u1": 2**-7, "i2": 2**-15, "i3": 2**-23, "i4": 2**-24, "f4": 0, "f8": 2**-24}  # i4 and f8 as float32


def read(data: bytes, tmp_path: Path) -> tuple[WavFormat, np.ndarray]:
    path = tmp_path / "read.wav"
    path.write_bytes(data)
    with path.open("rb") as file:
        found = read_format(file)
        return found, read_frames(file, found, 0, found.frames)


def fault(data: bytes, tmp_path: Path) -> tuple[str, str]:
    with pytest.raises(BadWav) as caught:
        read(data, tmp_path)
    return caught.value.error, str(caught.value)


@pytest.mark.parametrize(
    ("amplitude", "code"),
    # F(x) = sgn(x) ln(1 + 255 |x|) / ln 256, worked out by hand: F(1 / 255) = 1 / 8, F(15 / 255) = 1 / 2
    [(0.0, 128), (1.0, 255), (-1.0, 0), (15 / 255, 191), (-15 / 255, 64), (1 / 255, 143), (-1 / 255, 112)],
)
def test_mu_law_is_that_of_the_formula(amplitude: float, code: int) -> None:
    assert mu_law_encode(np.array([amplitude])).tolist() == [code]


def test_mu_law_codes_are_those_of_the_logarithm() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 100_000).astype(np.float32)
    companded = np.sign(samples) * np.log1p(255 * np.abs(samples.astype(np.float64))) / np.log(256)
    exact = 127.5 * (companded + 1) + 0.5
    clear = np.abs(exact - np.rint(exact)) > 1e-4  # where the last bit of float32 does not decide
    assert clear.mean() > 0.999
    assert np.array_equal(mu_law_encode(samples)[clear], np.floor(exact[clear]).astype(np.uint8))


def test_mu_law_decodes_every_code_to_an_amplitude_of_that_code() -> None:
    codes = np.arange(256, dtype=np.uint8)
    amplitudes = mu_law_decode(codes)
    assert np.array_equal(mu_law_encode(amplitudes), codes)
    assert (np.diff(amplitudes) > 0).all()
    assert np.allclose(amplitudes, -amplitudes[::-1])
    assert (amplitudes.min(), amplitudes.max(), amplitudes.dtype) == (-1, 1, np.float32)
    assert abs(amplitudes[SILENCE]) < 1e-4


@given(st.floats(-1, 1, width=32))
def test_mu_law_keeps_soft_sounds_finely(amplitude: float) -> None:
    """The slope of the expander is ln 256 (1 + 255 |x|) / 255, and a code is at most half a step of 2 / 255 away."""
    back = float(mu_law_decode(mu_law_encode(np.array([amplitude])))[0])
    assert abs(back - amplitude) <= 1.03 * np.log(256) * (1 / 255 + abs(amplitude)) / 255 + 1e-7


def test_mu_law_clips_what_is_louder_and_keeps_the_shape() -> None:
    assert mu_law_encode(np.array([[-7.0, 7.0], [-1.001, np.inf]])).tolist() == [[0, 255], [0, 255]]
    assert mu_law_encode(np.zeros(0)).shape == mu_law_decode(np.zeros(0, np.uint8)).shape == (0,)


@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_written_is_read_by_other_readers(tmp_path: Path, channels: int) -> None:
    samples = np.stack([tone(440, 0.1), tone(880, 0.1)], 1)[:, :channels]
    data = wav_bytes(samples if channels > 1 else samples[:, 0], 8000)
    with wave.open(io.BytesIO(data)) as file:
        assert file.getparams()[:4] == (channels, 2, 8000, 800)
    rate, values = wavfile.read(io.BytesIO(data))
    assert rate == 8000
    assert np.allclose(values.reshape(800, channels) / 32767, samples, atol=1 / 32767)
    assert np.allclose(read(data, tmp_path)[1], samples.mean(1), atol=2 / 32767)
    assert wavfile.read(io.BytesIO(wav_bytes(np.array([-3.0, 3.0]), 8000)))[1].tolist() == [-32767, 32767]


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_sample_becomes_amplitudes(tmp_path: Path, kind: str, channels: int, extensible: bool) -> None:
    samples = np.stack([noise(number, 0.05) for number in range(channels)], 1)
    samples[:2] = [[-1.0], [1 - 2**-20]]
    found, amplitudes = read(wav(samples, kind, extensible=extensible), tmp_path)
    assert (found.rate, found.channels, found.frames) == (8000, channels, 400)
    assert amplitudes.dtype == np.float32
    assert np.abs(amplitudes - samples.mean(1)).max() <= STEP[kind] + 2e-7
    assert amplitudes[0] == -1


@pytest.mark.parametrize("kind", KINDS)
def test_amplitudes_are_those_of_another_reader(tmp_path: Path, kind: str) -> None:
    data = wav(noise(3, 0.05), kind)
    values = wavfile.read(io.BytesIO(data))[1].astype(np.float64)
    full = {"u1": 2.0**7, "i2": 2.0**15, "i3": 2.0**31, "i4": 2.0**31}.get(kind, 1.0)
    assert np.allclose(read(data, tmp_path)[1], (values - (128 if kind == "u1" else 0)) / full, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_any_frames_are_read_without_the_others(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(np.stack([noise(1, 0.05), noise(2, 0.05)], 1), kind))
    with path.open("rb") as file:
        found = read_format(file)
        everything = read_frames(file, found, 0, 400)
        assert np.array_equal(read_frames(file, found, 133, 241), everything[133:241])
        assert read_frames(file, found, 400, 400).shape == (0,)


def test_chunks_that_say_nothing_of_the_samples_are_passed_over(tmp_path: Path) -> None:
    samples = noise(1, 0.01)
    data = riff(
        chunk(b"LIST", b"odd"), form("i2", 1, 8000), chunk(b"id3 ", bytes(100)), chunk(b"data", stored(samples, "i2")),
        chunk(b"bext", b"after"),
    )  # fmt: skip
    assert np.array_equal(read(data, tmp_path)[1], read(wav(samples), tmp_path)[1])
    assert np.array_equal(read(data + b"more", tmp_path)[1], read(wav(samples), tmp_path)[1])


def test_the_last_byte_that_only_makes_the_length_even_may_be_missing(tmp_path: Path) -> None:
    data = wav(noise(1, 0.01)[:79], "u1")
    assert np.array_equal(read(data[:-1], tmp_path)[1], read(data, tmp_path)[1])
    assert len(read(data, tmp_path)[1]) == 79


def changed(at: int, form: str, value: int, data: bytes | None = None) -> bytes:
    """A sound file with one number of its header replaced."""
    whole = bytearray(wav(tone(440, 0.01)) if data is None else data)
    struct.pack_into(form, whole, at, value)
    return bytes(whole)


SOUND = wav(tone(440, 0.01))
EXTENDED = wav(tone(440, 0.01), extensible=True)


@pytest.mark.parametrize(
    ("data", "error", "detail"),
    [
        (b"", "not_wav", "expected RIFF and WAVE at the start, found an empty file"),
        (b"RIFF", "not_wav", "found b'RIFF' ... b''"),
        (b"RIFX" + SOUND[4:], "not_wav", "found b'RIFX' ... b'WAVE'"),
        (SOUND[:8] + b"AVI " + SOUND[12:], "not_wav", "found b'RIFF' ... b'AVI '"),
        (SOUND[:100], "truncated", "its header promises 204 bytes, found 100"),
        (SOUND[:-2], "truncated", "its header promises 204 bytes, found 202"),
        (changed(4, "<I", 0xFFFFFFFF), "truncated", "its header promises 4,294,967,303 bytes, found 204"),
        (changed(40, "<I", 0xFFFFFFFE), "truncated", "expected 4,294,967,294 bytes of samples, found 160"),
        (changed(4, "<I", 4), "wav_malformed", "no samples (chunk data) within the 12 bytes that its header promises"),
        (changed(4, "<I", 100), "truncated", "expected 160 bytes of samples, found 64"),
        (riff(form("i2", 1, 8000)), "wav_malformed", "no samples (chunk data) within the 36 bytes"),
        (riff(chunk(b"data", bytes(4))), "wav_malformed", "its samples come before their format (chunk fmt)"),
        (riff(form("i2", 1, 8000), chunk(b"data", b"")), "no_samples", "its chunk data is empty"),
        (riff(form("i2", 2, 8000), chunk(b"data", bytes(6))), "wav_malformed", "whole frames of 4 bytes, found 6"),
        (riff(chunk(b"fmt ", bytes(14)), chunk(b"data", bytes(4))), "wav_malformed", "at least 16 bytes"),
        (riff(*[chunk(b"JUNK", b"")] * 2000), "wav_malformed", "no samples within its first 1,000 chunks"),
        (changed(20, "<H", 2), "unknown_codec", "found Microsoft ADPCM of 16 bits"),
        (changed(20, "<H", 7), "unknown_codec", "found mu-law of 16 bits"),
        (changed(20, "<H", 3), "unknown_codec", "expected PCM of 8, 16, 24 or 32 bits or float of 32 or 64, found"),
        (changed(34, "<H", 12), "unknown_codec", "found format 1 of 12 bits"),
        (changed(44, "<H", 0x55, EXTENDED), "unknown_codec", "found MP3 of 16 bits"),
        (changed(50, "<B", 9, EXTENDED), "unknown_codec", "found format 65534 of 16 bits"),
        (changed(22, "<H", 0), "wav_malformed", "expected 1 to 64 channels, found 0"),
        (changed(22, "<H", 65535), "wav_malformed", "expected 1 to 64 channels, found 65,535"),
        (changed(24, "<I", 0), "sample_rate", "expected from 1,000 to 768,000 Hz, found 0"),
        (changed(24, "<I", 0xFFFFFFFF), "sample_rate", "found 4,294,967,295"),
        (changed(32, "<H", 3), "wav_malformed", "expected frames of 2 bytes for 1 channels of 16 bits, found 3"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, data: bytes, error: str, detail: str) -> None:
    found = fault(data, tmp_path)
    assert found[0] == error
    assert detail in found[1]


def test_a_file_that_lies_about_its_size_takes_no_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        for data in (changed(40, "<I", 0xFFFFFFF0), changed(16, "<I", 0xFFFFFFF0), changed(4, "<I", 0xFFFFFFF0)):
            fault(data, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_a_file_that_became_shorter_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(tone(440, 10.0)))
    with path.open("rb") as file:
        found = read_format(file)
        os.truncate(path, 100_000)
        with pytest.raises(BadWav, match="expected 160,000 bytes at 44, found 99,956"):
            read_frames(file, found, 0, found.frames)


def converted(samples: np.ndarray, rate: int, wanted: int, segment: int = 10**9) -> np.ndarray:
    up, down = factors(rate, wanted)
    signal = samples.astype(np.float32)
    length = resampled_length(len(signal), up, down)
    return np.concatenate(
        [
            resampled(lambda a, b: signal[a:b], len(signal), up, down, start, min(start + segment, length))
            for start in range(0, length, segment)
        ]
    )


@pytest.mark.parametrize(("rate", "wanted"), [(44_100, 16_000), (8000, 16_000), (16_000, 11_025), (16_000, 16_000)])
def test_a_tone_keeps_pitch_and_loudness_at_another_rate(rate: int, wanted: int) -> None:
    found = converted(tone(1000, 0.5, rate), rate, wanted)
    assert len(found) == -(-round(0.5 * rate) * wanted // rate)
    inner = slice(wanted // 20, -wanted // 20)
    assert np.abs(found - tone(1000, 1.0, wanted)[: len(found)])[inner].max() < 5e-3


def test_what_the_new_rate_cannot_hold_is_silent_and_not_folded_back() -> None:
    """Linear interpolation would leave a tone of 4 kHz here at 2 kHz."""
    found = converted(tone(6000, 0.5, 48_000), 48_000, 8000)
    assert np.abs(found[200:-200]).max() < 3e-3


@settings(max_examples=40)
@given(
    rate=st.sampled_from([8000, 11_025, 16_000, 22_050, 44_100, 48_000]),
    wanted=st.sampled_from([8000, 16_000, 22_050, 24_000]),
    samples=st.integers(1, 4000),
    segment=st.integers(16, 1500),
)
def test_pieces_of_a_resampled_signal_are_the_whole_one(rate: int, wanted: int, samples: int, segment: int) -> None:
    signal = noise(samples, 1.0, 4000)[:samples].astype(np.float32)
    whole = converted(signal, rate, wanted)
    assert np.array_equal(converted(signal, rate, wanted, segment), whole)
    up, down = factors(rate, wanted)
    assert np.allclose(whole, resample_poly(signal.astype(np.float64), up, down), atol=1e-5)
