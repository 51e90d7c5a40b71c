"""dSprites: 737,280 binary images 64 x 64 of a square, an ellipse or a heart, one for each combination of its factors.

Definition: Matthey, Higgins, Hassabis, Lerchner 2017, https://github.com/google-deepmind/dsprites-dataset: 3 shapes x
6 scales from 0.5 to 1 x 40 orientations from 0 to 2 pi x 32 x 32 positions from 0 to 1, in this order, the last factor
varying fastest. No official split.

With a path the published .npz is read. Without one the images are *rendered to that definition*. They are not the
published pixels: the definition does not give the sizes of the sprites in pixels, and the ones chosen here are

- position: the sprite's centre is the centre of pixel (16 + y, 16 + x), rows downwards, for steps x, y from 0 to 31;
- at scale 1 the square has a side of 21 pixels, the ellipse semi-axes of 15 and 7.5 pixels, and the heart is the curve
  (a^2 + b^2 - 1)^3 = a^2 b^3 with 12.5 pixels a unit, turned about the point (0, 0.25) in the middle of it;
- orientation: turned by that angle, clockwise on the screen; at 0 the ellipse lies and the heart stands on its tip;
- a pixel is white where more than half of its 8 x 8 sample points lie inside the sprite.

So each sprite is whole at every position. As orientation 0 and 2 pi are the same, and as the symmetries of square and
ellipse can fall on the same pixels, some combinations give the same image: of the 720 sprites 664 differ.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pipeline.data.config import DspritesSource
from pipeline.data.shape import Shape
from pipeline.data.sources.base import PARTITION_ROWS, Partition, Source, binary, record_batch
from pipeline.data.sources.npy import Array, unpack_npz
from pipeline.errors import UserError

CLASSES = ("square", "ellipse", "heart")
ATTRIBUTES = ("scale", "orientation", "position_x", "position_y")
FACTORS = (3, 6, 40, 32, 32)  # shape, then the attributes
ROWS = math.prod(FACTORS)
_BATCH_ROWS = 4096
_SHAPE = Shape(64, 64, 1)
_VALUES = (np.linspace(0.5, 1, 6), np.linspace(0, 2 * math.pi, 40), np.linspace(0, 1, 32), np.linspace(0, 1, 32))

_POSITIONS = 32
_PLACES = _POSITIONS**2
_RADIUS = 16  # pixels from the centre of a sprite to the border of its mask, and from there to that of the canvas
_SAMPLES = 8  # a pixel side
_SQUARE_HALF, _ELLIPSE, _HEART_UNIT, _HEART_MIDDLE = 10.5, (15.0, 7.5), 12.5, 0.25

Bytes = NDArray[np.uint8]


def open_dsprites(config: DspritesSource, downloads: Path) -> Source:
    """The published file, or a rendering to its definition; `name` says which.

    Raises:
        UserError: what is at the path is not the published file.
    """
    if config.path is None:
        sprites = b"".join(np.packbits(sprite(number)).tobytes() for number in range(math.prod(FACTORS[:3])))
        digests = {"rendered sprites": hashlib.sha256(sprites).hexdigest()}
        return _source("dsprites (rendered)", digests, [_Rendered(*part) for part in _parts()])
    path = Path(config.path)
    if not path.is_file():
        raise UserError(
            f"data.source.path: {path}: no such file; set it to the published .npz, or to null to render the images"
        )
    names = ("imgs", "latents_classes", "latents_values")
    digest, found = unpack_npz(path, {f"data.source.path ({name})": name for name in names}, downloads)
    arrays = dict(zip(names, found.values(), strict=True))
    expected = {"imgs": (ROWS, 64, 64), "latents_classes": (ROWS, 6), "latents_values": (ROWS, 6)}
    for name, array in arrays.items():
        if (
            array.shape != expected[name]
            or array.dtype.kind not in "iuf"
            or (name == "imgs" and array.dtype != np.uint8)
        ):
            raise UserError(
                f"data.source.path: {path}: expected the published dSprites, its {name} {list(expected[name])}, found "
                f"{array.dtype} {list(array.shape)}; fetch it again, or set the path to null to render the images"
            )
    return _source("dsprites", {path.name: digest}, [_Published(path.name, arrays, *part) for part in _parts()])


def _source(name: str, digests: dict[str, str], partitions: list[Any]) -> Source:
    return Source(
        name=name,
        partitions=tuple[Partition, ...](partitions),
        pixels=_SHAPE,
        classes=CLASSES,
        attributes=ATTRIBUTES,
        digests=digests,
    )


def _parts() -> list[tuple[int, int]]:
    return [(start, min(start + PARTITION_ROWS, ROWS)) for start in range(0, ROWS, PARTITION_ROWS)]


def _ids(factors: NDArray[np.int64]) -> list[str]:
    """Names of combinations [N, 5]."""
    return [f"dsprites-{a}-{b}-{c:02d}-{d:02d}-{e:02d}" for a, b, c, d, e in factors.tolist()]


@dataclass(frozen=True, slots=True)
class _Rendered:
    """Combinations `start` to before `stop`, rendered when they are read."""

    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def batches(self) -> Iterator[pa.RecordBatch]:
        for start in range(self.start, self.stop, _BATCH_ROWS):
            rows = np.arange(start, min(start + _BATCH_ROWS, self.stop))
            factors = np.stack(np.unravel_index(rows, FACTORS), axis=1)
            values = [values[factors[:, 1 + at]] for at, values in enumerate(_VALUES)]
            yield record_batch(
                _ids(factors),
                binary(render(start // _PLACES, len(rows) // _PLACES)),
                label=pa.array(factors[:, 0]),
                attributes=np.stack(values, axis=1),
                source="rendered",
            )


@dataclass(frozen=True, slots=True)
class _Published:
    """Rows `start` to before `stop` of the published file."""

    source: str
    arrays: dict[str, Array]
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def batches(self) -> Iterator[pa.RecordBatch]:
        maps = {name: array.map() for name, array in self.arrays.items()}
        for start in range(self.start, self.stop, _BATCH_ROWS):
            rows = slice(start, min(start + _BATCH_ROWS, self.stop))
            images, factors, values = (np.asarray(maps[name][rows]) for name in self.arrays)
            binary_only = images.reshape(len(images), -1).max(axis=1) <= 1
            yield record_batch(
                _ids(factors[:, 1:].astype(np.int64)),  # the first factor is the color, always white
                pc.if_else(pa.array(binary_only), binary(images * np.uint8(255)), None),
                label=pa.array(factors[:, 1].astype(np.int64)),
                attributes=values[:, 2:],
                source=self.source,
                error=[None if good else "pixel_range" for good in binary_only],
                detail=[None if good else "expected pixels of 0 and 1" for good in binary_only],
            )


def render(first: int, count: int) -> Bytes:
    """Images [count * 1024, 64, 64] of sprites from the number `first` on, each at all its positions: 0 or 255."""
    images = np.empty((count, _POSITIONS, _POSITIONS, 64, 64), np.uint8)
    for at in range(count):
        _place(sprite(first + at) * np.uint8(255), images[at])
    return images.reshape(-1, 64, 64)


def _place(mask: Bytes, out: Bytes) -> None:
    """Write the mask at all positions into `out` [x, y, 64, 64]: each image is a window onto one padded mask."""
    padded = np.pad(mask, _POSITIONS - 1)
    windows = sliding_window_view(padded, (64, 64))[::-1, ::-1]
    np.copyto(out, windows.transpose(1, 0, 2, 3))


def sprite(number: int) -> Bytes:
    """Mask [33, 33] of 0 and 1 of a shape, scale and orientation, counted through in this order.

    The same bits on every machine: sums and products of float64 are exact to the last bit by IEEE 754, and sine and
    cosine, which are not, are rounded first.
    """
    shape, scale, orientation = (int(factor) for factor in np.unravel_index(number, FACTORS[:3]))
    down, right = _sample_points()
    angle = float(_VALUES[1][orientation])
    cosine, sine = round(math.cos(angle), 12), round(math.sin(angle), 12)
    size = float(_VALUES[0][scale])
    along, across = (cosine * right + sine * down) / size, (cosine * down - sine * right) / size
    inside = _inside(CLASSES[shape], along, across)
    side = 2 * _RADIUS + 1
    covered: NDArray[np.int64] = inside.reshape(side, _SAMPLES, side, _SAMPLES).sum(axis=(1, 3))
    return (covered > _SAMPLES**2 // 2).astype(np.uint8)


@cache
def _sample_points() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Offsets from the centre of a sprite in pixels: down [S, 1] and right [1, S]."""
    count = (2 * _RADIUS + 1) * _SAMPLES
    offsets = (np.arange(count) + 0.5) / _SAMPLES - (_RADIUS + 0.5)
    return offsets[:, None], offsets[None, :]


def _inside(shape: str, right: NDArray[np.float64], down: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points, in pixels from the centre of the upright sprite at scale 1, lie inside it."""
    if shape == "square":
        return (abs(right) <= _SQUARE_HALF) & (abs(down) <= _SQUARE_HALF)
    if shape == "ellipse":
        long, short = right / _ELLIPSE[0], down / _ELLIPSE[1]
        return long * long + short * short <= 1
    a, b = right / _HEART_UNIT, _HEART_MIDDLE - down / _HEART_UNIT
    ring = a * a + b * b - 1
    return np.less_equal(ring * ring * ring, a * a * b * b * b)
