"""Foreign tars in the WebDataset layout: each tar a partition, each sample a row."""

import re
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
    MAX_CLASSES,
    Partition,
    Source,
    class_names,
    encode_labels,
    first_faults,
    record_batch,
)
from pipeline.data.sources.paths import find_files, shown
from pipeline.data.sources.tar_samples import BadSample, Reading, Row, Values, extension_of, png
from pipeline.data.sources.tar_walk import Damaged, Member, Tar, contents, walk
from pipeline.errors import UserError, did_you_mean

SUFFIXES = (".tar", ".tar.gz", ".tgz")
_THREADS = 8


def open_webdataset(config: WebDatasetSource, classes: tuple[str, ...] | None, max_bytes: int) -> Source:
    """The samples of the tars in the order of their names, each tar a partition.

    All headers, and the labels where `classes` does not name them, are read here.

    Raises:
        UserError: there is no tar, one is damaged, or no sample has the label or embedding that `config` names.
    """
    name, found_tars = find_files(config.path, SUFFIXES, "tars")
    tars = [Tar(*item) for item in found_tars.items()]
    reading = Reading(config, max_bytes)
    looks = _look_at_all(tars, reading, classes is None)
    if not any(look.rows for look in looks):
        raise UserError(f"data.source.path: {config.path}: expected samples, found none in {len(tars):,} tars")
    found = () if config.label is None else _classes(looks, config.label, classes, config.path)
    embedding = next((look.embedding for look in looks if look.embedding), 0)
    if config.embedding is not None and not embedding:
        raise _nowhere("embedding", config.embedding, looks, config.path)
    parts = [TarPart(tar, reading, found, look.rows) for tar, look in zip(tars, looks, strict=True)]
    return Source(
        name=name,
        partitions=tuple[Partition, ...](parts),
        pixels=None,
        classes=found,
        attributes=config.attributes,
        embedding=embedding,
        digests={tar.name: look.digest for tar, look in zip(tars, looks, strict=True)},
    )


class _Look(NamedTuple):
    """What is known of a tar before its images are read."""

    digest: str
    rows: int
    labels: set[Any]
    embedding: int
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
    config = reading.config
    wanted = {extension_of(config.label)} if labels and config.label is not None else set()
    first = {extension_of(config.embedding)} if config.embedding is not None else set()
    members: list[Member] = []
    distinct: set[Any] = set()
    embedding = 0
    with tar.opened() as stream:
        digest = files.sha256(tar.path)
        for member in walk(stream):
            members.append(member)
            extension = member.parts[1]
            if extension in (wanted if embedding else wanted | first) and 0 < member.size <= reading.max_bytes:
                label, vector = _peek(reading, extension, stream.read(member.size))
                embedding = embedding or vector
                if labels and isinstance(label, str | int | float) and label == label:
                    distinct |= {label} if len(distinct) <= MAX_CLASSES else set()  # one more is already an error
        rows = len(reading.rows(members))
    return _Look(digest, rows, distinct, embedding, {member.parts[1] for member in members})


def _peek(reading: Reading, extension: str, content: bytes) -> tuple[Any, int]:
    """Label and length of the embedding of a sample of which one member is known."""
    try:
        values = reading.values({extension: content})
    except BadSample:
        return None, 0
    return values.label, 0 if values.embedding is None else len(values.embedding)


def _classes(looks: Sequence[_Look], label: str, given: tuple[str, ...] | None, path: str) -> tuple[str, ...]:
    if given is not None:
        return given
    found = class_names(set().union(*(look.labels for look in looks)), None, f"data.source.label: {path}: {label}")
    if not found and label != "cls":
        raise _nowhere("label", label, looks, path)
    return found


def _nowhere(key: str, spec: str, looks: Sequence[_Look], path: str) -> UserError:
    known = set().union(*(look.extensions for look in looks)) - {""}
    remedy = did_you_mean(spec, known) if not spec.startswith("json:") else "; name a key of the .json members"
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

    def arrow(self, source: str, classes: tuple[str, ...]) -> pa.RecordBatch:
        names, images, values, errors, details = zip(*self.rows, strict=True)
        codes = encode_labels((value.label for value in values), classes)
        return record_batch(
            names,
            images,
            label=codes.labels,
            attributes=[value.attributes for value in values],
            embedding=[value.embedding for value in values],
            source=source,
            **first_faults((errors, details), (codes.errors, codes.details)),
        )


@dataclass(frozen=True, slots=True)
class TarPart:
    """All samples of one tar."""

    tar: Tar
    reading: Reading
    classes: tuple[str, ...]
    rows: int

    def batches(self) -> Iterator[pa.RecordBatch]:
        with self.tar.opened() as stream:
            members = list(walk(stream))
            rows = self.reading.rows(members)
        if len(rows) != self.rows:
            raise UserError(f"{self.tar.path} changed while it was read; start the stage again")
        batch = _Batch()
        with self.tar.opened() as stream:
            found = contents(stream, members, {member for row in rows for _, member in row.members})
            for row in rows:
                batch.add(f"{self.tar.name}:{_below(row.name)}", *self._row(row, _take(found, row)))
                if batch.is_full:
                    yield batch.arrow(self.tar.name, self.classes)
                    batch = _Batch()
            next(found, None)  # to the end, where it is checked that nothing is left
        if batch.rows:
            yield batch.arrow(self.tar.name, self.classes)

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
