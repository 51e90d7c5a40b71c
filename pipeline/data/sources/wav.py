"""WAV files below a folder, cut into segments of one length: rows of shape 1 x segment x 1, companded by mu-law."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import progress
from pipeline.data.audio import SILENCE, mu_law_encode
from pipeline.data.config import WavSource
from pipeline.data.quarantine import PARTIAL
from pipeline.data.shape import Shape
from pipeline.data.sources.base import (
    BATCH_BYTES,
    BATCH_ROWS,
    PARTITION_BYTES,
    PARTITION_ROWS,
    Source,
    binary,
    record_batch,
)
from pipeline.data.sources.image_layout import folder_classes, folder_layout
from pipeline.data.sources.image_listing import listing_digest
from pipeline.data.sources.paths import shown
from pipeline.data.sources.resample import factors, resampled
from pipeline.data.sources.wav_decode import BadWav, read_format, read_frames
from pipeline.data.sources.wav_files import Clip, labelled, list_wavs, read_clip

PARTITION_FILES = 512
MAX_AMPLITUDE = 4.0  # in floating point, four times full scale: above it the samples are not amplitudes
_RUN_SAMPLES = 2**20  # resampled at once
_RATES_SHOWN = 6


def open_wav(config: WavSource, classes: tuple[str, ...] | None, max_bytes: int) -> Source:
    """The segments of every WAV file below a folder, in the order of names; an unusable file is one row.

    The segments of a file form a group, so that no split holds a part of a recording whose rest is in another.

    Args:
        max_bytes: a file that is longer is not read.

    Raises:
        UserError: there is no such folder, no WAV file in it, or no class folder where there should be one.
    """
    found = list_wavs(config)
    layout = folder_layout(config, found)
    names = folder_classes(config, layout, found, classes)
    clips = [read_clip(name, each, config, max_bytes) for name, each in found.items()]
    if config.labels == "folders":
        clips = labelled(clips, layout, names)
    if layout.official:
        clips = [clip._replace(split=layout.split(clip.id)) for clip in clips]
    notes = _notes(clips, config)
    for note in notes:
        progress.say(f"{config.path}: {note}")
    return Source(
        name=shown(Path(config.path).resolve().name) or "recordings",
        partitions=tuple(WavPart(os.path.abspath(config.path), config, pieces) for pieces in _cut(clips, config)),
        pixels=Shape(1, config.segment, 1),
        classes=names,
        digests={"listing": listing_digest(found)},
        official=layout.official,
        notes=notes,
    )


class _Piece(NamedTuple):
    """Segments `start` to before `stop` of a file."""

    clip: Clip
    start: int
    stop: int


class _Rows(NamedTuple):
    """What a piece becomes: uint8 [n, segment], and for each row why it cannot be used, or None."""

    piece: _Piece
    codes: NDArray[np.uint8]
    errors: list[str | None]
    details: list[str | None]


@dataclass(frozen=True, slots=True)
class WavPart:
    """Some pieces of files."""

    folder: str
    config: WavSource
    pieces: tuple[_Piece, ...]

    @property
    def rows(self) -> int:
        return sum(piece.stop - piece.start for piece in self.pieces)

    def batches(self) -> Iterator[pa.RecordBatch]:
        limit = _rows_within(BATCH_ROWS, BATCH_BYTES, self.config)
        run = min(limit, _rows_within(BATCH_ROWS, _RUN_SAMPLES, self.config))
        held: list[_Rows] = []
        rows = 0
        for piece in self.pieces:
            for start in range(piece.start, piece.stop, run):
                part = piece._replace(start=start, stop=min(start + run, piece.stop))
                if held and rows + part.stop - part.start > limit:
                    yield self._batch(held)
                    held, rows = [], 0
                held.append(self._read(part))
                rows += part.stop - part.start
        if held:
            yield self._batch(held)

    def _batch(self, held: Sequence[_Rows]) -> pa.RecordBatch:
        errors = pa.array([error for rows in held for error in rows.errors], pa.string())
        images = binary(np.concatenate([rows.codes for rows in held]))
        if errors.null_count < len(errors):
            images = pc.if_else(errors.is_null(), images, None)
        of = [(rows.piece.clip, number) for rows in held for number in range(rows.piece.start, rows.piece.stop)]
        names = [clip.id for clip, _ in of]
        return record_batch(
            [clip.id if clip.error else f"{clip.id}#{number}" for clip, number in of],
            images,
            label=pa.array([clip.label for clip, _ in of], pa.int64()),
            group=names,
            source=names,
            split=pa.array([clip.split for clip, _ in of], pa.string()),
            error=errors,
            detail=pa.array([detail for rows in held for detail in rows.details], pa.string()),
        )

    def _read(self, piece: _Piece) -> _Rows:
        rows, clip = piece.stop - piece.start, piece.clip
        error, detail = clip.error, clip.detail
        if error is None:
            try:
                return self._rows(piece, self._samples(piece))
            except BadWav as bad:
                error, detail = bad.error, str(bad)
            except OSError as failed:
                error, detail = "unreadable", failed.strerror or type(failed).__name__
        return _Rows(piece, np.zeros((rows, self.config.segment), np.uint8), [error] * rows, [detail] * rows)

    def _samples(self, piece: _Piece) -> NDArray[np.float32]:
        """Mono amplitudes at the rate wanted, as many as the file has of these segments."""
        form, segment = piece.clip.form, self.config.segment
        assert form is not None
        with open(os.path.join(self.folder, piece.clip.name), "rb") as file:
            if read_format(file) != form:
                raise BadWav("unreadable", "it changed while it was read; start the stage again")
            up, down = factors(form.rate, self.config.sample_rate)
            start, stop = piece.start * segment, min(piece.stop * segment, piece.clip.samples)
            return resampled(lambda a, b: read_frames(file, form, a, b), form.frames, up, down, start, stop)

    def _rows(self, piece: _Piece, samples: NDArray[np.float32]) -> _Rows:
        rows, segment = piece.stop - piece.start, self.config.segment
        codes = np.full(rows * segment, SILENCE, np.uint8)
        codes[: len(samples)] = mu_law_encode(samples)
        out = _Rows(piece, codes.reshape(rows, segment), [None] * rows, [None] * rows)
        loudest = np.maximum.reduceat(np.abs(samples), np.arange(0, len(samples), segment))  # NaN where a sample is
        for row in np.flatnonzero(~(loudest <= MAX_AMPLITUDE)).tolist():
            out.errors[row] = "sample_range"
            out.details[row] = f"expected amplitudes from -1 to 1, found up to {loudest[row]:g}"
        missing = rows * segment - len(samples)
        if missing and self.config.remainder == "drop" and out.errors[-1] is None:
            out.errors[-1] = PARTIAL
            out.details[-1] = f"expected {segment:,} samples, found {segment - missing:,} (data.source.remainder: drop)"
        return out


def _notes(clips: Sequence[Clip], config: WavSource) -> tuple[str, ...]:
    """What was made of the files, with the numbers."""
    good = [clip for clip in clips if clip.error is None]
    rows = sum(clip.rows(config.segment) for clip in good)
    partial = sum(clip.samples % config.segment > 0 for clip in good)
    rates = Counter(clip.form.rate for clip in good if clip.form and clip.form.rate != config.sample_rate)
    seconds = f"{config.segment / config.sample_rate:g} s at {config.sample_rate:,} Hz"
    notes = [f"{rows:,} segments of {config.segment:,} samples ({seconds}, 8-bit mu-law) from {len(good):,} WAV files"]
    if partial:
        what = "filled up with silence" if config.remainder == "pad" else "put aside (data.source.remainder: drop)"
        notes.append(f"{partial:,} of the segments are the end of a file and not whole: {what}")
    if rates:
        shown_rates = sorted(rates.items(), key=lambda item: (-item[1], item[0]))[:_RATES_SHOWN]
        listed = ", ".join(f"{count:,} of {rate:,} Hz" for rate, count in shown_rates)
        if len(rates) > len(shown_rates):
            listed += f", the others from {min(rates):,} to {max(rates):,} Hz"
        notes.append(f"{rates.total():,} files resampled: {listed}")
    return tuple(notes)


def _cut(clips: Sequence[Clip], config: WavSource) -> Iterator[tuple[_Piece, ...]]:
    """The pieces of each partition; a long file is divided."""
    limit = _rows_within(PARTITION_ROWS, PARTITION_BYTES, config)
    held: list[_Piece] = []
    rows = 0
    for clip in clips:
        start, count = 0, clip.rows(config.segment)
        while start < count:
            if rows == limit or len(held) == PARTITION_FILES:
                yield tuple(held)
                held, rows = [], 0
            stop = min(count, start + limit - rows)
            held.append(_Piece(clip, start, stop))
            start, rows = stop, rows + stop - start
    if held:
        yield tuple(held)


def _rows_within(rows: int, num_bytes: int, config: WavSource) -> int:
    """How many rows take no more than that."""
    return max(1, min(rows, num_bytes // config.segment))
