"""Whether new data are like those before: what two folders of shards say of themselves, side by side."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.index import Manifest
from pipeline.retrain.config import DriftConfig


@dataclass(frozen=True)
class Statistics:
    """What a data set is compared by.

    Attributes:
        digest: of the manifest.
        shape: height, width, channels.
        counts: rows of each split.
        mean, std: of each channel over the training split, pixels in [0, 1].
        classes: name of each class -> its rows in all splits; empty where there are no labels.
    """

    digest: str
    shape: tuple[int, ...]
    counts: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: dict[str, int]

    @classmethod
    def of(cls, manifest: Manifest, index: bytes) -> "Statistics":
        """Of shards: their manifest, and their index.parquet, of which one column is read."""
        rows = _rows_of_labels(index, len(manifest.classes)) if manifest.classes else []
        return cls(
            digest=manifest.digest,
            shape=tuple(manifest.shape),
            counts=dict(manifest.counts),
            mean=manifest.mean,
            std=manifest.std,
            classes=dict(zip(manifest.classes, rows, strict=True)),
        )

    @property
    def rows(self) -> int:
        return sum(self.counts.values())

    def share(self, name: str) -> float:
        """Of a class in all rows that have a label."""
        total = sum(self.classes.values())
        return self.classes.get(name, 0) / total if total else 0.0


@dataclass(frozen=True)
class Row:
    """A line of the comparison.

    Attributes:
        limit: what is allowed, in words; empty: the line is shown and not judged.
    """

    what: str
    before: str
    now: str
    limit: str
    holds: bool = True

    @property
    def complaint(self) -> str:
        return f"{self.what}: {self.before} before, {self.now} now; allowed is {self.limit}"


def compare(before: Statistics, now: Statistics, config: DriftConfig) -> list[Row]:
    """Every line of the two tables; the new data are refused if one does not hold."""
    return [*_sizes(before, now, config), *_channels(before, now, config), *_classes(before, now, config)]


def _sizes(before: Statistics, now: Statistics, config: DriftConfig) -> Iterator[Row]:
    yield Row("image shape", _sides(before), _sides(now), "the same", before.shape == now.shape)
    lost, allowed = before.rows - now.rows, config.fewer_rows
    words = "" if allowed is None else f"at most {allowed:.1%} fewer"
    holds = allowed is None or lost <= allowed * before.rows
    yield Row("rows", f"{before.rows:,}", f"{now.rows:,}", words, holds)
    for split, count in now.counts.items():
        yield Row(f"rows of {split}", f"{before.counts.get(split, 0):,}", f"{count:,}", "")


def _sides(data: Statistics) -> str:
    return "x".join(map(str, data.shape))


def _channels(before: Statistics, now: Statistics, config: DriftConfig) -> Iterator[Row]:
    if before.shape[-1] != now.shape[-1]:
        return
    for name, allowed in (("mean", config.mean), ("std", config.std)):
        pairs: Sequence[tuple[float, float]] = list(zip(getattr(before, name), getattr(now, name), strict=True))
        for channel, (old, new) in enumerate(pairs):
            what = f"pixel {name}" + (f" of channel {channel}" if len(pairs) > 1 else "")
            words = "" if allowed is None else f"a change of at most {allowed:g}"
            yield Row(what, f"{old:.4f}", f"{new:.4f}", words, allowed is None or abs(new - old) <= allowed)


def _classes(before: Statistics, now: Statistics, config: DriftConfig) -> Iterator[Row]:
    for name in sorted({*before.classes, *now.classes}):
        old, new = _share(before, name), _share(now, name)
        if name not in before.classes or name not in now.classes:
            allowed = config.new_classes if name not in before.classes else config.vanished_classes
            word = "new" if name not in before.classes else "vanished"
            yield Row(f"class {name}", old, new, "" if allowed else f"no {word} classes", allowed)
            continue
        limit = config.class_share
        words = "" if limit is None else f"a change of at most {limit:.1%}"
        change = abs(now.share(name) - before.share(name))
        yield Row(f"class {name}", old, new, words, limit is None or change <= limit)


def _share(data: Statistics, name: str) -> str:
    return f"{data.share(name):.2%}" if name in data.classes else "none"


def _rows_of_labels(index: bytes, classes: int) -> list[int]:
    import numpy as np
    import pyarrow.parquet as pq

    table: Any = pq.read_table(io.BytesIO(index), columns=["label"])
    labels = table["label"].drop_null().to_numpy()
    return [int(count) for count in np.bincount(labels, minlength=classes)]
