"""manifest.json: what a folder of shards holds, and the digest by which runs name it."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import files
from pipeline.data.shape import Shape
from pipeline.errors import UserError
from vae_core.config import DataSpec

VERSION = 2
MANIFEST, INDEX = "manifest.json", "index.parquet"

_NAME = re.compile(r"(train|val|test)/[A-Za-z0-9_-]+\.tar")  # of a shard: it leads nowhere else
_SHA256 = re.compile(r"[0-9a-f]{64}")  # names an entry of a node's cache
_MOST = 2**48  # bytes or rows


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One tar.

    Attributes:
        name: path within the folder of shards.
        bytes: length of the file.
        sha256: of the whole file, 64 hex digits.
        generation: 0: of the source; n: of the n-th entry of data.append.
    """

    name: str
    split: str
    generation: int
    bytes: int
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        shape: of every image; the values are uint8.
        classes: name of each label from 0; empty where there are no labels.
        attributes: name of each attribute; empty where there are none.
        embedding: length of the embedding vectors; 0 where there are none.
        encoding: what each image is in its tar: raw (KEY.npy), png or jpeg.
        counts: rows of each split.
        shards: split after split, in the order of their rows.
        index: sha256 of index.parquet.
        mean: of each channel over the training split, pixels in [0, 1].
        std: likewise, the standard deviation.
        dataset: digest of the prepared rows.
        source: name of the data set.
        files: its files and their sha256.
    """

    shape: Shape
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    embedding: int
    encoding: Literal["raw", "png", "jpeg"]
    counts: dict[str, int]
    shards: tuple[ShardEntry, ...]
    index: str
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
        """Shape of an image and widths of the other columns, as the models want it."""
        return DataSpec(
            channels=self.shape.channels,
            height=self.shape.height,
            width=self.shape.width,
            num_classes=len(self.classes),
            attributes=len(self.attributes),
            embedding=self.embedding,
        )

    def of_split(self, split: str) -> tuple[ShardEntry, ...]:
        return tuple(shard for shard in self.shards if shard.split == split)

    def content(self) -> dict[str, Any]:
        """All of manifest.json but its digest."""
        return {
            "version": VERSION,
            "schema": {
                "image": {**self.shape._asdict(), "dtype": "uint8", "encoding": self.encoding},
                "classes": list(self.classes),
                "attributes": list(self.attributes),
                "embedding": self.embedding,
            },
            "counts": self.counts,
            "mean": list(self.mean),
            "std": list(self.std),
            "dataset": self.dataset,
            "provenance": {"source": self.source, "files": self.files},
            "index": self.index,
            "shards": [asdict(shard) for shard in self.shards],
        }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    files.write_json(folder / MANIFEST, {"digest": manifest.digest, **manifest.content()})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder of shards.

    Raises:
        UserError: there is none, or it is not as it was written.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{folder / MANIFEST}: no such file; write the shards with `dvc repro shard`") from None
    return parse_manifest(data, str(folder))


def parse_manifest(data: bytes, folder: str) -> Manifest:
    """The manifest whose file holds `data`; `folder` is where it lies, for messages.

    Raises:
        UserError: it is not as it was written.
    """
    path = f"{folder}/{MANIFEST}"
    try:
        content = json.loads(data)
        claimed, version = content.pop("digest"), content["version"]
        found = _digest(content)
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path}: not a manifest; {remedy(folder)}") from None
    if found != claimed:
        raise UserError(f"{path}: changed since it was written: digest {claimed}, content {found}; {remedy(folder)}")
    if version != VERSION:
        raise UserError(
            f"{path}: expected version {VERSION}, found {version}; write the shards again with `dvc repro -f shard`"
        )
    try:
        manifest = _manifest(content)
        problem = _problem(manifest)
    except (LookupError, AttributeError, TypeError, ValueError, OverflowError):
        problem = "a key is missing, or holds something of another kind"
    if problem is not None:
        raise UserError(f"{path}: describes no shards: {problem}; {remedy(folder)}")
    return manifest


def remedy(folder: object) -> str:
    """What to do about a damaged shard or manifest."""
    if "://" in str(folder):
        return f"remove it there, and copy it again with `python -m pipeline upload {folder}`"
    return f"restore it with `rm -r {folder} && dvc checkout`, or write it again with `dvc repro -f shard`"


def _manifest(content: dict[str, Any]) -> Manifest:
    schema, provenance = content["schema"], content["provenance"]
    image = schema["image"]
    return Manifest(
        shape=Shape(image["height"], image["width"], image["channels"]),
        classes=tuple(schema["classes"]),
        attributes=tuple(schema["attributes"]),
        embedding=schema["embedding"],
        encoding=image["encoding"],
        counts=content["counts"],
        shards=tuple(ShardEntry(**shard) for shard in content["shards"]),
        index=content["index"],
        mean=tuple(content["mean"]),
        std=tuple(content["std"]),
        dataset=content["dataset"],
        source=provenance["source"],
        files=provenance["files"],
    )


def _problem(m: Manifest) -> str | None:
    """What no manifest that was written says, though its digest fits: that proves nothing of who wrote it."""
    texts = (*m.classes, *m.attributes, m.dataset, m.source, *m.files, *m.files.values())
    of_shards = (number for shard in m.shards for number in (shard.generation, shard.bytes, shard.rows))
    numbers = (*m.shape, m.embedding, *m.counts.values(), *of_shards)
    if not all(type(text) is str for text in texts):
        return "expected texts as names"
    if not all(type(number) is int and 0 <= number < _MOST for number in numbers) or not 0 < m.shape.size < 2**31:
        return "expected sizes and counts"
    if m.encoding not in ("raw", "png", "jpeg"):
        return f"encoding {m.encoding!r}"
    if not len(m.mean) == len(m.std) == m.shape.channels or not all(0 <= x <= 1 for x in (*m.mean, *m.std)):
        return "expected a mean and a deviation from 0 to 1 for each channel"
    for shard in m.shards:
        if not _NAME.fullmatch(shard.name) or shard.split != shard.name.partition("/")[0]:
            return f"{shard.name!r} is not the name of a shard of the split {shard.split!r}"
    if len({shard.name for shard in m.shards}) < len(m.shards) or not all(shard.rows for shard in m.shards):
        return "a shard is there twice, or has no rows"
    if not all(_SHA256.fullmatch(digest) for digest in (m.index, *(shard.sha256 for shard in m.shards))):
        return "expected a sha256 of 64 digits for each file"
    if any(rows != sum(shard.rows for shard in m.of_split(split)) for split, rows in m.counts.items()):
        return "the rows of the shards are not those of their split"
    return None


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
