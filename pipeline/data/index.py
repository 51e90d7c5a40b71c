"""manifest.json: what a folder of shards holds, and the digest by which runs name it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.data.shape import Shape
from pipeline.errors import UserError
from vae_core.config import DataSpec

VERSION = 1
MANIFEST, INDEX = "manifest.json", "index.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One tar.

    Attributes:
        name: path within the folder of shards.
        bytes: length of the file.
        sha256: of the whole file, 64 hex digits.
    """

    name: str
    split: str
    bytes: int
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        shape: of every image; the values are uint8.
        classes: name of each label from 0; empty where there are no labels.
        counts: rows of each split.
        shards: in the order of their rows, split after split.
        mean: of each channel over the training split, pixels in [0, 1].
        std: likewise, the standard deviation.
        dataset: digest of the prepared rows.
        source: name of the data set.
        files: its files and their sha256.
    """

    shape: Shape
    classes: tuple[str, ...]
    counts: dict[str, int]
    shards: tuple[ShardEntry, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset: str
    source: str
    files: dict[str, str]

    @property
    def digest(self) -> str:
        """sha256 of the canonical content, 64 hex digits: equal for equal shards, whatever wrote them."""
        return _digest(self.content())

    @property
    def spec(self) -> DataSpec:
        """Shape of an image and number of classes, as the models want it."""
        return DataSpec(
            channels=self.shape.channels,
            height=self.shape.height,
            width=self.shape.width,
            num_classes=len(self.classes),
        )

    def of_split(self, split: str) -> tuple[ShardEntry, ...]:
        return tuple(shard for shard in self.shards if shard.split == split)

    def content(self) -> dict[str, Any]:
        """All of manifest.json but its digest."""
        return {
            "version": VERSION,
            "schema": {"image": {**self.shape._asdict(), "dtype": "uint8"}, "classes": list(self.classes)},
            "counts": self.counts,
            "mean": list(self.mean),
            "std": list(self.std),
            "dataset": self.dataset,
            "provenance": {"source": self.source, "files": self.files},
            "shards": [asdict(shard) for shard in self.shards],
        }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    files.write_json(folder / MANIFEST, {"digest": manifest.digest, **manifest.content()})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards.

    Raises:
        UserError: there is none, or it is not as it was written.
    """
    path = folder / MANIFEST
    try:
        content = files.read_json(path)
        claimed = content.pop("digest")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; write the shards with `dvc repro shard`") from None
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{path}: not a manifest; {remedy(folder)}") from None
    found = _digest(content)
    if found != claimed:
        raise UserError(f"{path}: changed since it was written: digest {claimed}, content {found}; {remedy(folder)}")
    if content["version"] != VERSION:
        raise UserError(
            f"{path}: expected version {VERSION}, found {content['version']}; write the shards again with "
            "`dvc repro -f shard`"
        )
    return _manifest(content)


def remedy(folder: Path) -> str:
    """What to do about a damaged shard or manifest."""
    return f"restore it with `rm -r {folder} && dvc checkout`, or write it again with `dvc repro -f shard`"


def _manifest(content: dict[str, Any]) -> Manifest:
    image, provenance = content["schema"]["image"], content["provenance"]
    return Manifest(
        shape=Shape(image["height"], image["width"], image["channels"]),
        classes=tuple(content["schema"]["classes"]),
        counts=content["counts"],
        shards=tuple(ShardEntry(**shard) for shard in content["shards"]),
        mean=tuple(content["mean"]),
        std=tuple(content["std"]),
        dataset=content["dataset"],
        source=provenance["source"],
        files=provenance["files"],
    )


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
