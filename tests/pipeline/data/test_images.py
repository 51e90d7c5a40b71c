"""Any image that Pillow reads becomes pixels of one kind; whatever cannot be read has a reason."""

import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.config import ImageConfig
from pipeline.data.images import BadImage, convert, converted_shape, decode
from pipeline.data.shape import Shape


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(width: int = 12, height: int = 8) -> Image.Image:
    """Left half dark red, right half light green: what is where shows after any change."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = (120, 0, 0), (40, 250, 40)
    return Image.fromarray(pixels)


SIZED = ImageConfig(size=(4, 6))


DEEP = {"I;16": (np.uint16, 257), "I": (np.int32, 257), "F": (np.float32, 1 / 255)}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
@pytest.mark.parametrize("wanted", ["gray", "rgb"])
def test_every_mode_becomes_gray_or_rgb(mode: str, wanted: Any) -> None:
    if mode in DEEP:
        kind, scale = DEEP[mode]
        image = Image.fromarray((np.asarray(photo().convert("L"), np.float64) * scale).astype(kind))
    else:
        image = photo().convert(mode)
    data = encoded(image, "TIFF" if mode in ("CMYK", "YCbCr", "I", "F") else "PNG")
    pixels = decode(data, ImageConfig(mode=wanted))
    assert pixels.shape == (8, 12, 1 if wanted == "gray" else 3)
    assert pixels.dtype == np.uint8
    expected = np.asarray(photo().convert("L" if wanted == "gray" else "RGB")).reshape(pixels.shape)
    if mode in ("RGB", "RGBA") or (wanted == "gray" and mode in ("L", "LA", *DEEP)):
        np.testing.assert_array_equal(pixels, expected)
    assert pixels[:, 6:].mean() > pixels[:, :6].mean()


def test_a_16_bit_pgm_is_read() -> None:
    data = b"P5 2 1 65535\n" + np.array([0, 40_000], ">u2").tobytes()
    assert decode(data, ImageConfig(mode="gray")).ravel().tolist() == [0, round(40_000 / 257)]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "ICO"])
def test_every_format_is_read(kind: str) -> None:
    options = {"sizes": [(12, 8)]} if kind == "ICO" else {}
    pixels = decode(encoded(photo(), kind, **options), SIZED)
    assert pixels.shape == (4, 6, 3)
    assert pixels[:, :3, 0].mean() > pixels[:, :3, 1].mean()
    assert pixels[:, 3:, 1].mean() > pixels[:, 3:, 0].mean()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = photo()
    stored = upright if orientation == 1 else upright.transpose(
        {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_270}[orientation]
    )  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encoded(stored, "PNG", exif=exif), ImageConfig())
    np.testing.assert_array_equal(pixels, np.asarray(upright))


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (5, 5), color) for color in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert decode(data, ImageConfig())[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("background", "value"), [("black", 0), ("white", 255)])
def test_what_is_transparent_shows_the_background(background: Any, value: int) -> None:
    clear = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9] * 256)
    for data in (encoded(clear), encoded(clear.convert("LA")), encoded(palette, "PNG", transparency=0)):
        assert (decode(data, ImageConfig(background=background)) == value).all()


def test_fits() -> None:
    data = encoded(photo(12, 4))
    crop, pad, stretch = (
        decode(data, ImageConfig(size=(6, 6), fit=fit, interpolation="nearest", background="white"))  # type: ignore[arg-type]
        for fit in ("crop", "pad", "stretch")
    )
    assert {image.shape for image in (crop, pad, stretch)} == {(6, 6, 3)}
    assert (crop[:, 0] == (120, 0, 0)).all()
    assert (pad[0] == 255).all()
    assert (pad[-1] == 255).all()
    assert (pad[3, 0] == (120, 0, 0)).all()
    assert (stretch[:, :3] == (120, 0, 0)).all()
    assert (stretch[:, 3:] == (40, 250, 40)).all()


def test_raw_pixels_are_converted_like_files() -> None:
    config = ImageConfig(size=(4, 6), mode="gray")
    pixels = np.asarray(photo())
    np.testing.assert_array_equal(convert(pixels, config), decode(encoded(photo()), config))
    assert converted_shape(Shape(8, 12, 3), config) == Shape(4, 6, 1)
    assert converted_shape(Shape(8, 12, 1), ImageConfig()) == Shape(8, 12, 1)


@pytest.mark.parametrize(
    ("data", "changes", "error", "detail"),
    [
        (b"", {}, "undecodable", "the file is empty"),
        (b"no image at all", {}, "undecodable", "no image of a format that Pillow reads"),
        (encoded(photo())[:-35], {}, "truncated", "truncated"),
        (encoded(photo(200, 200), "JPEG")[:-900], {}, "truncated", "truncated"),
        (encoded(photo()), {"max_bytes": 50}, "too_many_bytes", "expected at most 50 bytes, found"),
        (encoded(photo()), {"max_pixels": 95}, "too_many_pixels", "expected at most 95 pixels, found 12 x 8 = 96"),
        (encoded(Image.fromarray(np.full((2, 2), 1e9, np.float32)), "TIFF"), {}, "pixel_range", "found 1e+09"),
    ],
)
def test_what_cannot_be_read_has_a_reason(data: bytes, changes: dict[str, int], error: str, detail: str) -> None:
    with pytest.raises(BadImage, match=detail.replace("+", r"\+")) as bad:
        decode(data, ImageConfig(**changes))  # type: ignore[arg-type]
    assert bad.value.error == error


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    header = encoded(Image.new("1", (1, 1)))
    bomb = header[:16] + (50_000).to_bytes(4, "big") * 2 + header[24:]
    bomb = bomb[:29] + zlib.crc32(bomb[12:29]).to_bytes(4, "big") + bomb[33:]
    with pytest.raises(BadImage, match="found 2,500,000,000") as bad:
        decode(bomb, ImageConfig())
    assert bad.value.error == "too_many_pixels"


def test_formats_that_start_other_programs_are_not_opened() -> None:
    with pytest.raises(BadImage, match="no image of a format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n", ImageConfig())
