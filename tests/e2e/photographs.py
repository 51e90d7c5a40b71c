"""A folder of photographs as people have them: many formats, modes and sizes, odd names, some files damaged."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("golden retriever", "v1.2 cats", "Vögel & Bäume", "猫", "x")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MODES = {
    "JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "P", "L", "LA", "1", "I;16"), "WEBP": ("RGB", "RGBA"),
    "BMP": ("RGB", "L"), "GIF": ("P",), "TIFF": ("RGB", "CMYK", "L", "I;16"), "PPM": ("RGB", "L"),
}  # fmt: skip
SUFFIX = {"JPEG": "jpg", "TIFF": "TIF", "PPM": "ppm"}


def write_photographs(folder: Path, count: int, damaged: int) -> None:
    """`count` files over CLASSES, of which `damaged` cannot be decoded; the same files each time."""
    rng = np.random.default_rng(0)
    bad = set(np.linspace(1, count - 1, damaged).astype(int).tolist())
    for number in range(count):
        label = number % len(CLASSES)
        kind = FORMATS[number % len(FORMATS)]
        mode = MODES[kind][number // len(FORMATS) % len(MODES[kind])]
        data = _encode(_scene(rng, label), kind, mode, orientation=1 + number % 8 if kind == "JPEG" else 1)
        if number in bad:
            data = (b"", b"not an image", data[: len(data) // 3], data[:12] + bytes(len(data) - 12))[number % 4]
        path = folder / CLASSES[label] / f"photo {number:04d}.final.{SUFFIX.get(kind, kind.lower())}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _scene(rng: np.random.Generator, label: int) -> Image.Image:
    """A bright disc before a sloping sky with some noise, its color that of the class."""
    width, height = (int(side) for side in rng.integers(20, 300, 2))
    y, x = np.mgrid[:height, :width]
    sky = np.stack([y / height, x / width, np.full((height, width), 0.4)], -1) * 150
    center, radius = rng.uniform(0.3, 0.7, 2), rng.uniform(0.15, 0.3)
    disc = ((y / height - center[0]) ** 2 + (x / width - center[1]) ** 2 < radius**2)[:, :, None]
    color = np.eye(5, 3)[label] * 200 + 55
    pixels = np.where(disc, color, sky) + rng.normal(0, 6, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _encode(scene: Image.Image, kind: str, mode: str, orientation: int) -> bytes:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(scene.convert("L")).astype(np.uint16) * 257)
    elif mode == "RGBA":
        image = scene.copy()
        image.putalpha(200)
    else:
        image = scene.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, kind, **({"exif": exif} if orientation > 1 else {}))
    return stream.getvalue()
