"""Foreign tars in the WebDataset layout: each tar a partition, each sample a row."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline import files
from pipeline.data.config import WebDatasetSource
from pipeline.data.sources.base import (
    BATCH_BYTES,
    BATCH_ROWS,
    Partition,
    Source,
    first_faults,
    record_batch,
)
from pipeline.data.sources.labels import MAX_CLASSES, class_names, encode_labels
from pipeline.data.sources.paths import find_files, shown
from pipeline.data.sources.splits import TAR_FILE, official, splits_of_files
from pipeline.data.sources.tar_samples import BadSample, Reading, Row, Values, extension_of, png
from pipeline.data.sources.tar_walk import Damaged, Member, Tar, contents, walk
from pipeline.errors import UserError, did_you_mean

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_THREADS = 8


def open_webdataset(config: WebDatasetSource, classes: tuple[str, ...] | None, max_bytes: int) -> Source:
    """The samples of the tars in the order of their names, each tar a partition.

    All headers, and the labels where `classes` does not name them, are read here.

    Raises:
        UserError: there is no tar, one is damaged, or no sample has the image, label, attribute or embedding that
            `config` names.
    """
    name, found_tars = find_files(config.path, SUFFIXES, "tars")
    tars = [Tar(text, path.absolute(), shown(str(path))) for text, path in found_tars.items()]
    reading = Reading(config, max_bytes)
    looks = _look_at_all(tars, reading, classes is None)
    if not any(look.rows for look in looks):
        raise UserError(f"data.source.path: {config.path}: expected samples, found none in {len(tars):,} tars")
    _check(config, looks)
    found = () if config.label is None else _classes(looks, config.label, classes, config.path)
    embedding = next((look.embedding for look in looks if look.embedding), 0)
    if config.embedding is not None and not embedding:
        raise _nowhere("embedding", config.embedding, looks, config.path)
    splits = splits_of_files(found_tars, TAR_FILE, config.path)
    parts = [
        TarPart(tar, reading, found, splits.get(tar.name), look.rows) for tar, look in zip(tars, looks, strict=True)
    ]
    return Source(
        name=name,
        partitions=tuple[Partition, ...](parts),
        pixels=None,
        classes=found,
        attributes=config.attributes,
        embedding=embedding,
        digests={tar.name: look.digest for tar, look in zip(tars, looks, strict=True)},
        official=official(splits.values()),
    )


class _Look(NamedTuple):
    """What is known of a tar before its images are read."""

    digest: str
    rows: int
    labels: Counter[Any]
    embedding: int
    attributes: set[str]
    extensions: set[str]


def _look_at_all(tars: Sequence[Tar], reading: Reading, labels: bool) -> list[_Look]:
    """Raises UserError: the faults of all tars, a line each."""

    def look(tar: Tar) -> _Look | UserError:
        try:
            return _look(tar, reading, labels)
        except UserError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        looks = list(pool.map(look, tars))
    if problems := [str(look) for look in looks if isinstance(look, UserError)]:
        raise UserError("\n".join(problems))
    return [look for look in looks if isinstance(look, _Look)]


def _look(tar: Tar, reading: Reading, labels: bool) -> _Look:
    members: list[Member] = []
    told = _Told(reading, labels)
    with tar.opened() as stream:
        digest = files.sha256(tar.path)
        for member in walk(stream):
            members.append(member)
            if told.wants(member.parts[1]) and 0 < member.size <= reading.max_bytes:
                told.take(member.parts[1], stream.read(member.size))
        rows = len(reading.rows(members))
    extensions = {member.parts[1] for member in members}
    return _Look(digest, rows, told.labels, told.embedding, told.attributes, extensions)


@dataclass(slots=True)
class _Told:
    """What the small members of a tar tell, each taken alone.

    Attributes:
        labels: how often each is there, until they are more than can be classes.
        attributes: those whose key was seen.
    """

    reading: Reading
    wants_labels: bool
    labels: Counter[Any] = field(default_factory=Counter)
    embedding: int = 0
    attributes: set[str] = field(default_factory=set)

    def wants(self, extension: str) -> bool:
        """Whether such a member can tell more."""
        config = self.reading.config
        specs = [config.label if self.wants_labels else None, None if self.embedding else config.embedding]
        wanted = {extension_of(spec) for spec in specs if spec is not None}
        return extension in wanted or (extension == "json" and len(self.attributes) < len(config.attributes))

    def take(self, extension: str, content: bytes) -> None:
        try:
            values = self.reading.values({extension: content})
            self.attributes |= self.reading.attributes_in(content) if extension == "json" else set()
        except BadSample:
            return
        label = values.label
        self.embedding = self.embedding or (0 if values.embedding is None else len(values.embedding))
        is_label = isinstance(label, str | int | float) and label == label
        if self.wants_labels and is_label and len(self.labels) <= MAX_CLASSES:  # one more is already an error
            self.labels[label] += 1


def _check(config: WebDatasetSource, looks: Sequence[_Look]) -> None:
    """Raises UserError: no sample has an image, or one of the attributes."""
    images, known = {extension.lower() for extension in config.image}, _extensions(looks)
    if not any(extension in images or extension.rpartition(".")[2] in images for extension in known):
        there = shown(", ".join(sorted(known)[:20])) or "none"
        raise UserError(
            f"data.source.image: {config.path}: expected one of the extensions {', '.join(config.image)}, found "
            f"{there}; name that of the images"
        )
    seen = set().union(*(look.attributes for look in looks))
    for name in config.attributes:
        if name not in seen:
            raise UserError(
                f"data.source.attributes: {config.path}: no sample has {name!r} in its .json; "
                "name keys of the .json members"
            )


def _classes(looks: Sequence[_Look], label: str, given: tuple[str, ...] | None, path: str) -> tuple[str, ...]:
    if given is not None:
        return given
    counts: Counter[Any] = Counter()
    for look in looks:
        counts.update(look.labels)
    instead = "write it into the .json and name its key under data.source.attributes instead"
    found = class_names(counts, None, f"data.source.label: {path}: {label}", instead)
    if not found and label != "cls":
        raise _nowhere("label", label, looks, path)
    return found


def _extensions(looks: Sequence[_Look]) -> set[str]:
    return set[str]().union(*(look.extensions for look in looks)) - {""}


def _nowhere(key: str, spec: str, looks: Sequence[_Look], path: str) -> UserError:
    remedy = (
        did_you_mean(spec, _extensions(looks)) if not spec.startswith("json:") else "; name a key of the .json members"
    )
    return UserError(f"data.source.{key}: {path}: no sample has {spec!r}{remedy}")


@dataclass(slots=True)
class _Batch:
    """Rows that are not yet a batch: id, image, values, error and detail of each."""

    rows: list[tuple[str, bytes | None, Values, str | None, str | None]] = field(default_factory=list)
    num_bytes: int = 0

    @property
    def is_full(self) -> bool:
        return len(self.rows) >= BATCH_ROWS or self.num_bytes >= BATCH_BYTES

    def add(self, name: str, image: bytes | None, values: Values, error: str | None, detail: str | None) -> None:
        self.rows.append((name, image, values, error, detail))
        self.num_bytes += len(image or b"") + (0 if values.embedding is None else values.embedding.nbytes)

    def arrow(self, source: str, classes: tuple[str, ...], split: str | None) -> pa.RecordBatch:
        names, images, values, errors, details = zip(*self.rows, strict=True)
        codes = encode_labels((value.label for value in values), classes)
        return record_batch(
            names,
            images,
            label=codes.labels,
            attributes=[value.attributes for value in values],
            embedding=[value.embedding for value in values],
            source=source,
            split=split,
            **first_faults((errors, details), (codes.errors, codes.details)),
        )


@dataclass(frozen=True, slots=True)
class TarPart:
    """All samples of one tar."""

    tar: Tar
    reading: Reading
    classes: tuple[str, ...]
    split: str | None
    rows: int

    def batches(self) -> Iterator[pa.RecordBatch]:
        with self.tar.opened() as stream:
            members = list(walk(stream))
            rows = self.reading.rows(members)
        if len(rows) != self.rows:
            raise UserError(f"{self.tar.where} changed while it was read; start the stage again")
        batch = _Batch()
        with self.tar.opened() as stream:
            found = contents(stream, members, {member for row in rows for _, member in row.members})
            for row in rows:
                batch.add(f"{self.tar.name}:{_below(row.name)}", *self._row(row, _take(found, row)))
                if batch.is_full:
                    yield batch.arrow(self.tar.name, self.classes, self.split)
                    batch = _Batch()
            next(found, None)  # to the end, where it is checked that nothing is left
        if batch.rows:
            yield batch.arrow(self.tar.name, self.classes, self.split)

    def _row(self, row: Row, read: dict[str, bytes]) -> tuple[bytes | None, Values, str | None, str | None]:
        """Image, values, error and detail."""
        if row.error is not None:
            return None, Values(), row.error, row.detail
        try:
            values, data = self.reading.values(read), read[row.image]
            return png(data) if row.image.endswith("npy") else data, values, None, None
        except BadSample as error:
            return None, Values(), error.error, str(error)


def _below(name: str) -> str:
    """A member's name as part of an id: without the start of an absolute path."""
    return shown(re.sub(r"^(?:\.?/)+", "", name))


def _take(found: Iterator[tuple[Member, bytes]], row: Row) -> dict[str, bytes]:
    """The contents of a row's members, which come in the order of the tar."""
    extensions = {member: extension for extension, member in row.members}
    read = {}
    for wanted in sorted(extensions, key=lambda member: member.at):
        member, data = next(found, (None, b""))
        if member != wanted or len(data) != wanted.size:
            raise Damaged(wanted.at, "WebDataset reads other members than the headers announce")
        read[extensions[wanted]] = data
    return read
