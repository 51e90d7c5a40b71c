"""Examples of each class of the training split, and how many rows each class has."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.loader import open_split

SHOWN_CLASSES = 20  # of a data set with hundreds, the first ones say enough


@dataclass(frozen=True, slots=True)
class Examples:
    """Of each class that has rows: some images, uint8 [n, H, W, C], its name, its number of rows.

    Without labels there is one class, without a name.
    """

    images: Sequence[npt.NDArray[np.uint8]]
    names: Sequence[str]
    rows: Sequence[int]


def read_examples(root: Path, classes: Sequence[str], each: int) -> Examples:
    """The first `each` rows of each class, in the order of the shards."""
    split = open_split(root / "data/shards", "train")
    labels = split.labels(np.arange(len(split), dtype=np.int64))
    if labels is None or not classes:
        return Examples([split.images(np.arange(min(each, len(split)), dtype=np.int64))], [""], [len(split)])
    of_class = {name: np.flatnonzero(labels == label) for label, name in enumerate(classes[:SHOWN_CLASSES])}
    there = {name: rows for name, rows in of_class.items() if len(rows)}
    return Examples(
        [split.images(rows[:each].astype(np.int64)) for rows in there.values()],
        list(there),
        [len(rows) for rows in there.values()],
    )
