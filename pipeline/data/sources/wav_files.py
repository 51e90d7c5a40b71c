"""The WAV files below a folder: which of them can be used, how many samples each becomes, and its class."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline import progress
from pipeline.data.config import WavSource
from pipeline.data.sources.image_layout import Layout
from pipeline.data.sources.image_listing import (
    Found,
    extension_of,
    found_file,
    passed_over,
    unsupported,
    walk,
)
from pipeline.data.sources.labels import encode_labels
from pipeline.data.sources.paths import distinct
from pipeline.data.sources.resample import MAX_FACTOR, factors, resampled_length
from pipeline.data.sources.wav_decode import BadWav, WavFormat, read_format
from pipeline.errors import UserError

MAX_SAMPLES = 2**30  # of a file at the rate wanted: 18 hours at 16 kHz
_EXTENSIONS = {".wav", ".wave"}
_OTHER_FORMATS = {f".{name}" for name in "mp3 flac ogg oga opus m4a aac aif aiff aifc au snd wma w64 rf64 caf".split()}


class Clip(NamedTuple):
    """A file.

    Attributes:
        id: its name as it can be stored.
        name: below the folder, as the file system has it.
        samples: at the rate wanted; 0 where the file cannot be used.
        error, detail: why it cannot.
    """

    id: str
    name: str
    form: WavFormat | None = None
    samples: int = 0
    label: int | None = None
    split: str | None = None
    error: str | None = None
    detail: str | None = None

    def rows(self, segment: int) -> int:
        """How many segments; one row without any where the file cannot be used."""
        return -(-self.samples // segment) if self.error is None else 1


def list_wavs(config: WavSource) -> dict[str, Found]:
    """Every file that is audio by its name, in the order of names; hidden files and folders are not looked at.

    Raises:
        UserError: there is no such folder, or no WAV file in it.
    """
    folder = Path(config.path)
    if not folder.is_dir():
        what = "this is a file" if folder.exists() else "no such folder"
        raise UserError(f"data.source.path: {config.path}: {what}; set it to the folder that holds the WAV files")
    found: dict[str, Found] = {}
    others: list[str] = []
    for name, entry in walk(folder, found):
        if (extension := extension_of(name)) in _EXTENSIONS:
            found[name] = found_file(entry, name, folder)
        elif extension in _OTHER_FORMATS:
            found[name] = unsupported(found_file(entry, name, folder), extension, "WAV", "WAV")
        else:
            others.append(name)
    text = passed_over(others, "no WAV file", "no WAV files")
    if all(each.error for each in found.values()):
        formats = sum(each.error == "unsupported_format" for each in found.values())
        reasons = [f"{formats:,} files to convert to WAV" if formats else "", text or ""]
        why = "".join(f"; {reason}" for reason in reasons if reason)
        raise UserError(f"data.source.path: {config.path}: expected WAV files in it, found none{why}")
    if text:
        progress.say(f"{config.path}: {text}")
    return {text: found[name] for text, name in distinct(found).items()}


def read_clip(name: str, found: Found, config: WavSource, max_bytes: int) -> Clip:
    """What the header of a file says, or why the file cannot be used."""
    if found.error is not None:
        return Clip(name, found.name, error=found.error, detail=found.detail)
    try:
        if found.size > max_bytes:
            raise BadWav("too_many_bytes", f"expected at most {max_bytes:,} bytes, found {found.size:,}")
        with Path(config.path, found.name).open("rb") as file:
            form = read_format(file)
        return Clip(name, found.name, form, _num_samples(form, config))
    except BadWav as bad:
        return Clip(name, found.name, error=bad.error, detail=str(bad))
    except OSError as error:
        return Clip(name, found.name, error="unreadable", detail=error.strerror or type(error).__name__)


def _num_samples(form: WavFormat, config: WavSource) -> int:
    """Of a file at the rate wanted."""
    up, down = factors(form.rate, config.sample_rate)
    if max(up, down) > MAX_FACTOR:
        what = f"{form.rate:,} to {config.sample_rate:,} Hz"
        raise BadWav("sample_rate", f"{what} is no ratio of whole numbers up to {MAX_FACTOR:,}, so it is not resampled")
    samples = resampled_length(form.frames, up, down)
    if samples > MAX_SAMPLES:
        raise BadWav("too_many_samples", f"expected at most {MAX_SAMPLES:,} samples, found {samples:,}")
    return samples


def labelled(clips: Sequence[Clip], layout: Layout, classes: tuple[str, ...]) -> list[Clip]:
    """With the label of each file, or why it has none, where nothing else is wrong with it."""
    of_folders = [layout.label(clip.id) for clip in clips]
    codes = encode_labels(of_folders, classes)
    out = []
    for clip, folder, label, error, detail in zip(clips, of_folders, *codes, strict=True):
        if clip.error is None and folder is None:
            error, detail = "label_missing", "expected the file in the folder of its class, found it beside them"
        keep = clip.error is not None or error is None
        out.append(clip._replace(label=label) if keep else clip._replace(error=error, detail=detail))
    return out
