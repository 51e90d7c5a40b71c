"""Small image files in the formats and modes that people have."""

import io
from typing import Any

import numpy as np
from PIL import Image

SIZE = (9, 7)  # height, width


def image_samples() -> dict[str, bytes]:
    """Name with extension -> content of the file."""
    random = np.random.Generator(np.random.Philox(1))
    gray = Image.fromarray(random.integers(0, 256, SIZE, np.uint8))
    rgb = Image.fromarray(random.integers(0, 256, (*SIZE, 3), np.uint8))
    rgba = Image.fromarray(random.integers(0, 256, (*SIZE, 4), np.uint8))
    deep = Image.fromarray(random.integers(0, 65536, SIZE, np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "turned"
    palette = rgb.quantize(16)
    return {
        "gray.png": _file(gray, "PNG"),
        "rgb.png": _file(rgb, "PNG"),
        "rgba.png": _file(rgba, "PNG"),
        "deep.png": _file(deep, "PNG"),
        "palette.png": _file(palette, "PNG", transparency=3),
        "bits.png": _file(gray.convert("1"), "PNG"),
        "animated.png": _file(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)]),
        "turned.jpg": _file(rgb, "JPEG", exif=exif),
        "progressive.jpg": _file(rgb, "JPEG", progressive=True),
        "cmyk.jpg": _file(rgb.convert("CMYK"), "JPEG"),
        "animated.gif": _file(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]),
        "lossy.webp": _file(rgb, "WEBP"),
        "lossless.webp": _file(rgba, "WEBP", lossless=True),
        "lzw.tif": _file(rgb, "TIFF", compression="tiff_lzw"),
        "float.tif": _file(Image.fromarray(random.random(SIZE, np.float32)), "TIFF"),
        "deep.tif": _file(deep, "TIFF", exif=exif),
        "rgb.bmp": _file(rgb, "BMP"),
        "rgb.ppm": _file(rgb, "PPM"),
        "deep.pgm": _file(deep, "PPM"),
        "rgba.ico": _file(rgba, "ICO", sizes=[(7, 7)]),
        "rgb.tga": _file(rgb, "TGA", compression="tga_rle"),
        "rgb.pcx": _file(rgb, "PCX"),
        "rgb.jp2": _file(rgb, "JPEG2000"),
        "rgba.dds": _file(rgba, "DDS"),
        "rgb.sgi": _file(rgb, "SGI"),
    }


def _file(image: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()
