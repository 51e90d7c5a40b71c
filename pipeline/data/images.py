"""From an image file, or raw pixels, to the uint8 array [H, W, C] that the data set wants."""

import io
import re
import warnings
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.data.config import ImageConfig
from pipeline.data.shape import Shape

Pixels = NDArray[np.uint8]

MODES = {"gray": "L", "rgb": "RGB"}
CHANNELS = {"L": 1, "RGB": 3}
_UNSAFE = {"EPS", "WMF", "IPTC"}  # decoded by other programs, or not at all; IPTC holds a file of any other format
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")


class BadImage(Exception):
    """An image that cannot be used: `error` is the ledger's short name for why, the message its detail."""

    def __init__(self, error: str, detail: str) -> None:
        super().__init__(detail)
        self.error = error


def decode(data: bytes, config: ImageConfig) -> Pixels:
    """The first frame of an image file, upright, in the mode and size that `config` asks for.

    Returns:
        uint8 [H, W, C]; C is 1 for gray, else 3.

    Raises:
        BadImage: too long, too large, truncated, or not an image that Pillow can decode.
    """
    if len(data) > config.max_bytes:
        raise BadImage("too_many_bytes", f"expected at most {config.max_bytes:,} bytes, found {len(data):,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tags that do not matter here
            return _fitted(_plain(_open(data, config), config), config)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("undecodable", "no image of a format that Pillow reads") from None
    except Exception as error:  # a decoder fed with foreign bytes may raise anything; whatever it is, the row is bad
        text = re.sub(r" at 0x[0-9a-f]+", "", str(error))[:200]  # an address would differ in the next run's ledger
        detail = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise BadImage("truncated" if "truncated" in detail else "undecodable", detail) from None


def convert(pixels: Pixels, config: ImageConfig) -> Pixels:
    """Raw pixels [H, W, C], C 1, 3 or 4, in the mode and size that `config` asks for."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return _fitted(_to_mode(image, _mode(image, config), config), config)


def converted_shape(shape: Shape, config: ImageConfig) -> Shape:
    """What `convert` makes of images of `shape`."""
    height, width = config.size or shape[:2]
    return Shape(height, width, CHANNELS[MODES[config.mode]] if config.mode else shape.channels)


def _open(data: bytes, config: ImageConfig) -> Image.Image:
    if not data:
        raise BadImage("undecodable", "the file is empty")
    # Pillow refuses twice this many, also of an image inside the file (ICO, ICNS, BLP, tiles of TIFF), whatever the
    # outer header says.
    Image.MAX_IMAGE_PIXELS = -(-config.max_pixels // 2)
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        pixels = image.width * image.height
        if pixels > config.max_pixels:
            raise _too_large(f"{image.width:,} x {image.height:,} = {pixels:,}", config)
        image.load()
    except Image.DecompressionBombError as error:
        number = re.search(r"[0-9]+", str(error))
        raise _too_large(f"{int(number[0]):,}" if number else "more", config) from None
    return ImageOps.exif_transpose(image)


def _too_large(found: str, config: ImageConfig) -> BadImage:
    return BadImage("too_many_pixels", f"expected at most {config.max_pixels:,} pixels, found {found}")


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in _UNSAFE)


def _plain(image: Image.Image, config: ImageConfig) -> Image.Image:
    """The image in the mode wanted, 8 bits a value."""
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    return _to_mode(image, MODES[config.mode or "rgb"], config)


def _eight_bits(values: NDArray[np.generic]) -> Pixels:
    """Values of 16 bits, or numbers from 0 to 1, as 0 .. 255."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" and 0 <= low and high <= 1:
        return np.rint(values.astype(np.float64) * 255).astype(np.uint8)
    if values.dtype.kind in "iu" and 0 <= low and high < 65536:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    raise BadImage("pixel_range", f"expected values of at most 16 bits, or from 0 to 1; found {low:g} to {high:g}")


def _mode(image: Image.Image, config: ImageConfig) -> str:
    return MODES[config.mode] if config.mode else image.mode


def _to_mode(image: Image.Image, mode: str, config: ImageConfig) -> Image.Image:
    if mode in CHANNELS and (image.mode in _ALPHA or "transparency" in image.info):
        front = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", front.size, config.background), front)
    return image if image.mode == mode else image.convert(mode)


def _fitted(image: Image.Image, config: ImageConfig) -> Pixels:
    if config.size is not None and (image.height, image.width) != config.size:
        size = config.size[::-1]
        method = Image.Resampling[config.interpolation.upper()]
        if config.fit == "crop":
            image = ImageOps.fit(image, size, method)
        elif config.fit == "pad":
            image = ImageOps.pad(image, size, method, color=config.background)
        else:
            image = image.resize(size, method)
    pixels = np.asarray(image, np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
