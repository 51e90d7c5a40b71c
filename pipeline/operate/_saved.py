"""Pictures, arrays and sound that the commands write, each whole or not at all."""

import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from vae_core.config import DataSpec

IMAGES, SIGNALS = 10, 5  # columns of a picture
MOST_SHOWN = 400  # images of a picture
LETTER, LINE = 0.1, 0.2  # inches that the title takes
NAME = 60  # characters shown of an id


def picture_path(text: str) -> Path:
    """Where a picture goes.

    Raises:
        UserError: the name does not end in .png.
    """
    if Path(text).suffix.lower() != ".png":
        raise UserError(f"--out {text}: expected a name that ends in .png")
    return Path(text)


def columns(data: "DataSpec") -> int:
    """How many images, or signals, a picture holds side by side."""
    return SIGNALS if data.height == 1 else IMAGES


def in_rows(images: "Tensor", width: int) -> list["Tensor"]:
    """[n, C, H, W] as rows of `width`, or of n where that is less; the last one is filled up with blanks."""
    *rows, last = images.split(width)
    return [*rows, filled_up(last, min(width, len(images)))]


def filled_up(row: "Tensor", width: int) -> "Tensor":
    """[n, C, H, W] as a row of `width` with blanks at its end."""
    import torch

    blank = torch.nan if row.shape[-2] == 1 else 1.0  # no curve, or white
    return torch.cat((row, torch.full((width - len(row), *row.shape[1:]), blank)))


def save_picture(rows: Sequence["Tensor"], names: Sequence[str], title: str, out: Path) -> None:
    """A PNG of rows of images [n, C, H, W] in [0, 1].

    Raises:
        UserError: it cannot be written.
    """
    from pipeline.evaluate.figures import grid
    from pipeline.figures import save_png

    figure = grid([row.float().cpu() for row in rows], [_drawable(plain(name)) for name in names], "")
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(plain(title), int(width / LETTER))
    figure.set_size_inches(width, height + LINE * (len(lines) - 1))
    figure.suptitle(_drawable("\n".join(lines)))
    with written(out):
        save_png(figure, out)


def _drawable(text: str) -> str:
    """What lies between two $ would be a formula."""
    return text.replace("$", r"\$")


@contextmanager
def written(out: Path) -> Iterator[None]:
    """Turn what the system says of a place that cannot be written into a UserError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"--out {out}: cannot be written ({reason}); name another place") from None


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A temporary name for a file that takes its place when the block ends well, and vanishes when it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def save_array(means: Iterator["Tensor"], shape: tuple[int, int, int, int], out: Path) -> None:
    """An .npy file, uint8 [N, H, W, C], of batches of means [B, C, H, W]; memory: one batch."""
    import numpy as np

    start = 0
    with new_file(out) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        for mean in means:
            array[start : start + len(mean)] = to_bytes(mean)
            start += len(mean)
        array.flush()


def to_bytes(mean: "Tensor") -> "NDArray[np.uint8]":
    """[B, C, H, W] in [0, 1] as uint8 [B, H, W, C]."""
    import torch

    pixels: NDArray[np.uint8] = (mean * 255).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu().numpy()
    return pixels


def save_sound(mean: "Tensor", sample_rate: int, out: Path) -> None:
    """A WAV file of one companded signal [C, 1, T] in [0, 1]."""
    from pipeline import files
    from pipeline.data.audio import mu_law_expand, wav_bytes

    amplitudes = mu_law_expand(2 * mean[:, 0].float().cpu().numpy().T - 1)
    files.write_bytes(out, wav_bytes(amplitudes, sample_rate))


def plain(text: str) -> str:
    """One short line, with nothing in it that a terminal would take for a command."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return line if len(line) <= 2 * NAME else f"{line[: 2 * NAME - 1]}…"


def short(name: str) -> str:
    """The end of an id, which tells more than its beginning."""
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"
