"""dSprites, rendered where it is used: 720 small masks on the device stand for 737,280 images of 64 x 64.

Factors, the last varying fastest: 3 shapes (square, ellipse, heart) x 6 scales x 40 orientations x 32 x 32 positions
(Matthey et al. 2017, https://github.com/google-deepmind/dsprites-dataset). The definition does not give the sizes of
the sprites in pixels, so these are not the published pixels; they are the ones that the pipeline renders.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FACTORS = (3, 6, 40, 32, 32)
NAMES = ("shape", "scale", "orientation", "position_x", "position_y")
ROWS = math.prod(FACTORS)
SIDE = 64

_POSITIONS, _RADIUS, _SAMPLES = 32, 16, 8
_SQUARE_HALF, _ELLIPSE, _HEART_UNIT, _HEART_MIDDLE = 10.5, (15.0, 7.5), 12.5, 0.25


def padded_masks() -> Tensor:
    """uint8 [720, 95, 95] of 0 and 255: each sprite in the middle of a black canvas that every image is a window of."""
    masks = np.stack([_mask(*factors) for factors in np.ndindex(*FACTORS[:3])])
    edge = _POSITIONS - 1
    return torch.from_numpy(np.pad(masks * np.uint8(255), ((0, 0), (edge, edge), (edge, edge))))


def render(masks: Tensor, rows: Tensor, *, stride: int = 1) -> Tensor:
    """uint8 [B, 1, 64 / stride, 64 / stride] of 0 and 255: the images with these numbers, int64 [B].

    Args:
        stride: take 1: every pixel; 2: every second one of every second row.
    """
    sprite, place = rows // _POSITIONS**2, rows % _POSITIONS**2
    x, y = place // _POSITIONS, place % _POSITIONS
    along = torch.arange(0, SIDE, stride, device=rows.device)
    down = (_POSITIONS - 1 - y)[:, None] + along
    right = (_POSITIONS - 1 - x)[:, None] + along
    return masks[sprite[:, None, None], down[:, :, None], right[:, None, :]][:, None]


def factors_of(rows: Tensor) -> Tensor:
    """int64 [B, 5]: the value, from 0, of each factor of the images with these numbers."""
    return torch.stack(torch.unravel_index(rows, FACTORS), dim=1)


def _mask(shape: int, scale: int, orientation: int) -> NDArray[np.uint8]:
    """[33, 33] of 0 and 1: a pixel is 1 where more than half of its 8 x 8 sample points lie inside the sprite."""
    side = 2 * _RADIUS + 1
    offsets = (np.arange(side * _SAMPLES) + 0.5) / _SAMPLES - (_RADIUS + 0.5)
    down, right = offsets[:, None], offsets[None, :]
    angle = float(np.linspace(0, 2 * math.pi, FACTORS[2])[orientation])
    cosine, sine = round(math.cos(angle), 12), round(math.sin(angle), 12)  # the same bits on every machine
    size = float(np.linspace(0.5, 1, FACTORS[1])[scale])
    inside = _inside(shape, (cosine * right + sine * down) / size, (cosine * down - sine * right) / size)
    covered: NDArray[np.int64] = inside.reshape(side, _SAMPLES, side, _SAMPLES).sum(axis=(1, 3))
    return (covered > _SAMPLES**2 // 2).astype(np.uint8)


def _inside(shape: int, right: NDArray[np.float64], down: NDArray[np.float64]) -> NDArray[np.bool_]:
    if shape == 0:
        return (abs(right) <= _SQUARE_HALF) & (abs(down) <= _SQUARE_HALF)
    if shape == 1:
        long, short = right / _ELLIPSE[0], down / _ELLIPSE[1]
        return long * long + short * short <= 1
    a, b = right / _HEART_UNIT, _HEART_MIDDLE - down / _HEART_UNIT
    ring = a * a + b * b - 1
    return np.less_equal(ring * ring * ring, a * a * b * b * b)
