"""What a data set holds, counted from its prepared table or from its shards, a part of the rows in memory at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import files
from pipeline.data import scan
from pipeline.data.config import ReadConfig
from pipeline.data.index import INDEX, MANIFEST, Manifest, read_manifest
from pipeline.data.ledger import Reason, read_ledger
from pipeline.data.loader import open_split
from pipeline.data.shape import Shape
from pipeline.data.split import SPLITS
from pipeline.errors import UserError


class Channel(NamedTuple):
    """One channel over the training rows, values from 0 to 255; no low and high where the pixels were not read."""

    mean: float
    std: float
    low: int | None
    high: int | None


class Attribute(NamedTuple):
    """One attribute over all rows."""

    name: str
    low: float
    mean: float
    high: float


class Tars(NamedTuple):
    """The shards of a split; sizes in bytes."""

    split: str
    number: int
    rows: int
    smallest: int
    largest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What there is to say of a data set.

    Attributes:
        digest: of the prepared rows, or of the shards where these were inspected.
        generations: rows of each split, for each generation.
        labels: int64 [splits, classes], rows of each; without classes one column of all rows.
        constant: images whose pixels are all alike; None: the pixels were not read.
        duplicates: images that repeat another one of their split; None: the shards do not say.
        rows_in: rows of the sources; None: the shards do not say.
        reasons: why the others were put aside, the most frequent first.
        bytes: of what lies on the disk.
        encoding: of the images in the shards; empty: there are none.
        examples: of each of the first classes, training images as uint8 [n, H, W, C], large ones made smaller.
        notes: what the source did to the rows, in words.
        remarks: what was noticed beside these figures, and needs a remedy.
    """

    name: str
    digest: str
    shape: Shape
    classes: tuple[str, ...]
    generations: tuple[Mapping[str, int], ...]
    labels: NDArray[np.int64]
    attributes: tuple[Attribute, ...]
    embedding: int
    channels: tuple[Channel, ...]
    constant: int | None
    duplicates: int | None = None
    rows_in: int | None = None
    reasons: tuple[Reason, ...] = ()
    bytes: Mapping[str, int]
    encoding: str = ""
    tars: tuple[Tars, ...] = ()
    examples: tuple[NDArray[np.uint8], ...]
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each split."""
        return {split: sum(rows[split] for rows in self.generations) for split in SPLITS}


def inspect_path(path: str, images: int, read: ReadConfig) -> Inspection:
    """Inspect a data folder, or a folder or address of shards, keeping up to `images` examples of each class.

    Raises:
        UserError: it is neither, or a file in it is missing or damaged.
    """
    folder = Path(path)
    if "://" in path or (folder / MANIFEST).is_file():
        return _inspect_shards(path, images, read)
    if (folder / "dataset.json").is_file():
        return _inspect_prepared(folder, images)
    if not folder.exists():
        found = "nothing"
    elif folder.is_dir():
        names = sorted(entry.name for entry in folder.iterdir())
        found = f"{', '.join(names[:4]) or 'an empty folder'}{', ...' if len(names) > 4 else ''}"
    else:
        found = "a file"
    raise UserError(
        f"{path}: expected a data folder (dataset.json, prepared), or a folder of shards ({MANIFEST}) or its address; "
        f"found {found}. Name one of these; `dvc repro shard` makes data and data/shards from data.source"
    )


def _inspect_prepared(folder: Path, images: int) -> Inspection:
    facts = _read_facts(folder / "dataset.json")
    shape, names = Shape(**facts["image"]), tuple(facts["attributes"])
    chunks = scan.prepared_chunks(folder / "prepared", shape, len(names))
    tally = scan.tally(chunks(False), len(facts["classes"]), len(names))
    if tally.labels.sum() != facts["rows_prepared"]:
        raise UserError(
            f"{folder / 'prepared'}: expected {facts['rows_prepared']:,} rows as dataset.json says, found "
            f"{tally.labels.sum():,}; prepare the data again with `dvc repro -f ingest`"
        )
    look = scan.look(chunks(True), tally.labels[scan.TRAIN], _wanted(images, facts["classes"]))
    figures = (facts["statistics"][name] for name in ("mean", "std", "min", "max"))
    ledger = folder / "quarantine.parquet"
    found = Inspection(
        name=facts["name"],
        digest=facts["digest"],
        shape=shape,
        classes=tuple(facts["classes"]),
        generations=tuple(facts["generations"]),
        labels=tally.labels,
        attributes=_attributes(names, tally),
        embedding=facts["embedding"],
        channels=tuple(map(Channel, *figures)),
        constant=look.constant,
        duplicates=facts["duplicate_images"],
        rows_in=facts["rows_in"],
        reasons=read_ledger(ledger),
        bytes={"prepared": _size(folder / "prepared"), "quarantine.parquet": _size(ledger)},
        examples=look.examples,
        notes=tuple(map(str, facts.get("notes", ()))),
    )
    return _with_shards(found, folder / "shards")


def _read_facts(path: Path) -> dict[str, Any]:
    needed = (
        "name digest image classes attributes embedding generations rows_in rows_prepared duplicate_images statistics"
    )
    try:
        facts = files.read_json(path)
        missing = [key for key in needed.split() if key not in facts]
    except (ValueError, TypeError):
        raise UserError(f"{path}: not valid JSON; prepare the data again with `dvc repro -f ingest`") from None
    if missing:
        raise UserError(f"{path}: no key {missing[0]!r}; prepare the data again with `dvc repro -f ingest`")
    return dict(facts)


def _with_shards(found: Inspection, folder: Path) -> Inspection:
    """With what the manifest says of the shards that lie beside the prepared rows."""
    if not (folder / MANIFEST).is_file():
        return found
    try:
        manifest = read_manifest(folder)
    except UserError as error:  # says nothing against the prepared rows
        return replace(found, remarks=(*found.remarks, str(error)))
    stale = () if manifest.dataset == found.digest else (f"{folder} holds other rows; write it again: dvc repro shard",)
    return replace(
        found,
        encoding=manifest.encoding,
        tars=_tars(manifest),
        bytes={**found.bytes, "shards": _size(folder)},
        remarks=(*found.remarks, *stale),
    )


def _inspect_shards(place: str, images: int, read: ReadConfig) -> Inspection:
    first = open_split(place, "train", read)
    manifest = first.manifest
    splits = {split: open_split(place, split, read) for split in SPLITS[1:] if manifest.of_split(split)}
    splits["train"] = first
    chunks = scan.shard_chunks(splits)
    tally = scan.tally(chunks(False), len(manifest.classes), len(manifest.attributes))
    wanted = _wanted(images, manifest.classes)
    local = all(split.local for split in splits.values())
    look = scan.look(chunks(True), tally.labels[scan.TRAIN], wanted) if local else None
    nothing = [None] * len(manifest.mean)
    figures = ([255 * value for value in values] for values in (manifest.mean, manifest.std))
    ends = (look.low, look.high) if look else (nothing, nothing)
    return Inspection(
        name=manifest.source,
        digest=manifest.digest,
        shape=manifest.shape,
        classes=manifest.classes,
        generations=_generations(manifest),
        labels=tally.labels,
        attributes=_attributes(manifest.attributes, tally),
        embedding=manifest.embedding,
        channels=tuple(map(Channel, *figures, *ends)),
        constant=look.constant if look else None,
        bytes={"shards": sum(entry.bytes for entry in manifest.shards), **_beside(Path(place))},
        encoding=manifest.encoding,
        tars=_tars(manifest),
        examples=look.examples if look else scan.first_of_each(first, len(manifest.classes), wanted),
    )


def _wanted(images: int, classes: Sequence[str]) -> int:
    return images if classes else images * scan.ROWS_WITHOUT_CLASSES


def _attributes(names: Sequence[str], tally: scan.Tally) -> tuple[Attribute, ...]:
    means = tally.total / max(1, int(tally.labels.sum()))
    return tuple(map(Attribute, names, tally.low.tolist(), means.tolist(), tally.high.tolist()))


def _beside(folder: Path) -> dict[str, int]:
    path = folder / INDEX
    return {INDEX: _size(path)} if path.is_file() else {}


def _generations(manifest: Manifest) -> tuple[Mapping[str, int], ...]:
    last = max(entry.generation for entry in manifest.shards)
    found = [dict.fromkeys(SPLITS, 0) for _ in range(last + 1)]
    for entry in manifest.shards:
        found[entry.generation][entry.split] += entry.rows
    return tuple(found)


def _tars(manifest: Manifest) -> tuple[Tars, ...]:
    parts = {split: manifest.of_split(split) for split in SPLITS}
    return tuple(
        Tars(split, len(shards), sum(shard.rows for shard in shards), min(sizes), max(sizes))
        for split, shards in parts.items()
        if (sizes := [shard.bytes for shard in shards])
    )


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
