"""What looks wrong with a data set, in words, each with its remedy."""

from collections.abc import Iterator

import numpy as np

from pipeline.data.inspection import Inspection
from pipeline.data.scan import TRAIN
from pipeline.data.shape import things
from pipeline.data.split import SPLITS

FEW_ROWS = 10  # of a split: its figures would be chance
HEAVY_DUPLICATION = 0.1  # of all rows
UNBALANCED = 100  # times as many rows in one class as in another
NAMED = 5  # classes in one message


def doubts(found: Inspection) -> Iterator[str]:
    """One line for each thing that is worth a look before training."""
    yield from found.remarks
    yield from _splits(found)
    yield from _classes(found)
    yield from _pixels(found)
    rows = sum(found.counts.values())
    if found.duplicates and found.duplicates > HEAVY_DUPLICATION * rows:
        yield (
            f"{found.duplicates:,} of {rows:,} {things(found.shape)} repeat another one exactly, so the model is "
            "trained on them more often; keep one of each in the source, unless that is meant"
        )


def _splits(found: Inspection) -> Iterator[str]:
    keys = {"val": "raise data.validation_fraction", "test": "raise data.test_fraction"}
    for split, rows in found.counts.items():
        if rows < FEW_ROWS:
            remedy = keys.get(split, "lower data.validation_fraction and data.test_fraction")
            yield (
                f"the {split} split has {_counted(rows, found)}, too few for figures to mean much; {remedy}, or add "
                f"{things(found.shape)}"
            )


def _classes(found: Inspection) -> Iterator[str]:
    if not found.classes:
        return
    train = found.labels[TRAIN]
    if missing := [found.classes[label] for label in np.flatnonzero(train == 0)]:
        elsewhere = int(found.labels[:, train == 0].sum())
        yield (
            f"no training {things(found.shape)[:-1]} of {_named(missing)} ({elsewhere:,} in {' and '.join(SPLITS[1:])})"
            f", so nothing is learned of it; add {things(found.shape)}, or leave it out of data.classes and the source"
        )
    largest, smallest = int(train.argmax()), int(np.where(train > 0, train, train.max()).argmin())
    if train[largest] >= UNBALANCED * max(1, train[smallest]):
        yield (
            f"{found.classes[largest]!r} has {train[largest]:,} training {things(found.shape)} and "
            f"{found.classes[smallest]!r} {train[smallest]:,}; classes are not weighted, so add some of the rare ones, "
            "or drop some of the others"
        )


def _pixels(found: Inspection) -> Iterator[str]:
    if found.constant:
        what, place = (things(found.shape)[:-1], "pixel" if found.shape.height > 1 else "place")
        yield (
            f"{_counted(found.constant, found)} with the same value in every {place}; if that is no {what} of "
            "anything, take it out of the source"
        )
    highest = [channel.high for channel in found.channels if channel.high is not None]
    if highest and max(highest) <= 1 and things(found.shape) == "images":
        yield (
            f"no pixel of a training image is above {max(highest)} of 255, so all images are nearly black: probably "
            "values from 0 to 1 stored as integers; store them as bool or float, or multiply them by 255"
        )


def _counted(count: int, found: Inspection) -> str:
    return f"{count:,} {things(found.shape)[: -1 if count == 1 else None]}"


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED:,} more classes" if len(names) > NAMED else ""
    return f"{', '.join(map(repr, names[:NAMED]))}{more}"
