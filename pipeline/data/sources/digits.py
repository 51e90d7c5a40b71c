"""The 8 x 8 digits inside scikit-learn: 1,797 images, no official split, no download."""

import hashlib

import numpy as np

from pipeline.data.shape import Shape
from pipeline.data.sources.base import Rows, Source
from pipeline.errors import UserError


def open_digits(path: str | None) -> Source:
    """Scikit-learn's digits, their values 0..16 scaled to 0..255, halves rounded up.

    Raises:
        UserError: a `path` was given; there are no files to look for.
    """
    if path is not None:
        raise UserError(
            f"data.source.path: expected null, because the digits come with scikit-learn; found {path!r}. "
            "Set it to null"
        )
    from sklearn.datasets import load_digits  # a second to import

    bunch = load_digits()
    values = bunch.images.astype(np.uint16)
    images = ((values * 255 + 8) // 16).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    digests = {
        "load_digits().images": hashlib.sha256(values.astype(np.uint8).tobytes()).hexdigest(),
        "load_digits().target": hashlib.sha256(labels.astype(np.uint8).tobytes()).hexdigest(),
    }
    return Source(
        name="digits",
        partitions=(Rows(images, labels, "digits", "sklearn.datasets.load_digits", None),),
        pixels=Shape(8, 8, 1),
        classes=tuple("0123456789"),
        digests=digests,
        in_memory=True,
    )
