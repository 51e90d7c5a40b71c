"""Image files below a folder, with or without a table about them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import progress
from pipeline.data.config import ImageFolderSource
from pipeline.data.sources.base import BATCH_BYTES, Source, first_faults, record_batch
from pipeline.data.sources.image_layout import Layout, folder_classes, folder_layout
from pipeline.data.sources.image_listing import Found, list_images, listing_digest
from pipeline.data.sources.image_table import Table, read_table
from pipeline.data.sources.labels import encode_labels
from pipeline.data.sources.paths import shown
from pipeline.errors import UserError
from pipeline.files import sha256

PARTITION_FILES = 512


def open_image_folder(config: ImageFolderSource, classes: tuple[str, ...] | None, max_bytes: int) -> Source:
    """Every image file below a folder, and every row of the table about them, in the order of names.

    Args:
        max_bytes: a file that is longer is not read.

    Raises:
        UserError: there is no such folder, no image in it, no class folder where there should be one,
            or the table is not what `config` says.
    """
    _check(config)
    listing = list_images(Path(config.path), config.table)
    if (instead := listing.nothing()) is not None:
        others = f"; {instead}" if instead else ""
        raise UserError(f"data.source.path: {config.path}: expected image files in it, found none{others}")
    if listing.others:
        progress.say(f"{config.path}: {listing.others}")
    table = None
    if config.table is not None:
        table = read_table(Path(config.table), config, classes, listing.found)
    layout = folder_layout(config, listing.found)
    names = folder_classes(config, layout, listing.found, classes)
    found = _with_rows_of(table, listing.found)
    facts = _facts(found, table, names, layout, config)
    return Source(
        name=shown(Path(config.path).resolve().name) or "images",
        partitions=tuple(_partitions(found, facts, os.path.abspath(config.path), max_bytes)),
        pixels=None,
        classes=names or (table.meaning.classes if table else ()),
        attributes=config.columns.attributes,
        embedding=table.meaning.embedding if table else 0,
        digests=_digests(listing.found, config.table),
        official=table.meaning.official if table and config.columns.split else layout.official,
    )


class _Content(NamedTuple):
    """Of a file; or why there is none."""

    image: bytes | None = None
    error: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class FolderPart:
    """Some files.

    Attributes:
        names: below the folder, as the file system has them.
        facts: the other columns of `ROWS`, a row a file.
    """

    folder: str
    names: tuple[str, ...]
    facts: pa.RecordBatch
    max_bytes: int

    @property
    def rows(self) -> int:
        return len(self.names)

    def batches(self) -> Iterator[pa.RecordBatch]:
        start = size = 0
        contents: list[_Content] = []
        for name, known in zip(self.names, self.facts.column("error").to_pylist(), strict=True):
            content = _Content() if known else _read(os.path.join(self.folder, name), self.max_bytes)
            contents.append(content)
            size += len(content.image or b"")
            if size >= BATCH_BYTES:
                yield self._batch(start, contents)
                start, size, contents = start + len(contents), 0, []
        if contents:
            yield self._batch(start, contents)

    def _batch(self, start: int, contents: Sequence[_Content]) -> pa.RecordBatch:
        facts = self.facts.slice(start, len(contents))
        values = {name: facts.column(name) for name in facts.schema.names}
        images, errors, details = zip(*contents, strict=True)
        values |= first_faults((values["error"], values["detail"]), (errors, details))
        return record_batch(values.pop("id"), images, **values)


def _read(path: str, max_bytes: int) -> _Content:
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
            if len(data) <= max_bytes:
                return _Content(data)
            size = max(len(data), os.fstat(file.fileno()).st_size)
            return _Content(None, "too_many_bytes", f"expected at most {max_bytes:,} bytes, found {size:,}")
    except OSError as error:
        return _Content(None, "unreadable", error.strerror or type(error).__name__)


def _check(config: ImageFolderSource) -> None:
    folder = Path(config.path)
    if not folder.is_dir():
        found = "this is a file" if folder.exists() else "no such folder"
        raise UserError(f"data.source.path: {config.path}: {found}; set it to the folder that holds the images")
    if config.labels != "table" and config.columns.label is not None:
        raise UserError(
            f"data.source.columns.label: expected null, because data.source.labels is {config.labels}; found "
            f"{config.columns.label!r}. Set it to null, or data.source.labels to table"
        )
    if config.table is not None and not Path(config.table).is_file():
        inside = folder / config.table
        hint = f"; did you mean {str(inside)!r}?" if inside.is_file() else "; set it to a CSV or Parquet file"
        raise UserError(f"data.source.table: {config.table}: no such file{hint}")


def _with_rows_of(table: Table | None, found: dict[str, Found]) -> list[tuple[str, Found]]:
    """Files and what the table alone names, in the order of names, each with its row of the table."""
    if table is None:
        return [*found.items()]
    out: dict[str, Found] = {}
    places = dict(table.places)
    for name, each in found.items():
        row = places.pop(name, None)
        error, detail = each.error, each.detail
        if row is None and error is None:
            error, detail = "table_missing", "the table has no row for this file"
        out[name] = Found(each.name, each.size, error, detail, row)
    for name, row in places.items():
        out[name] = Found(name, 0, "file_missing", "the table names this file, and it is not there", row)
    return sorted(out.items())


def _facts(
    found: list[tuple[str, Found]],
    table: Table | None,
    classes: tuple[str, ...],
    layout: Layout,
    config: ImageFolderSource,
) -> pa.RecordBatch:
    """All columns but the image, a row for each of `found`."""
    names = pa.array([name for name, _ in found], pa.string())
    faults: list[tuple[Any, ...]] = [([each.error for _, each in found], [each.detail for _, each in found])]
    values: dict[str, Any] = {}
    if table is not None:
        places = pa.array([each.row for _, each in found], pa.int64())
        values = table.meaning.values(table.rows.take(places).combine_chunks().to_batches()[0])
        values["id"] = pc.if_else(places.is_null(), names, values["id"]) if "id" in values else names
        if "error" in values:
            faults.append((values["error"], values["detail"]))
    if layout.official and config.columns.split is None:
        values["split"] = [layout.split(name) for name, _ in found]
    if config.labels == "folders":
        of_folders = [layout.label(name) for name, _ in found]
        codes = encode_labels(of_folders, classes)
        values["label"] = codes.labels
        beside = ("label_missing", "expected the image in the folder of its class, found it beside them")
        faults.append(tuple(zip(*(beside if each is None else (None, None) for each in of_folders), strict=True)))
        faults.append((codes.errors, codes.details))
    values.update(first_faults(*faults))
    return record_batch(values.pop("id", names), None, source=names, **values).drop_columns(["image"])


def _partitions(
    found: list[tuple[str, Found]], facts: pa.RecordBatch, folder: str, max_bytes: int
) -> Iterator[FolderPart]:
    for start in range(0, len(found), PARTITION_FILES):
        part = found[start : start + PARTITION_FILES]
        own = facts.take(pa.array(range(start, start + len(part))))  # a slice would be sent with all of the facts
        yield FolderPart(folder, tuple(each.name for _, each in part), own, max_bytes)


def _digests(found: dict[str, Found], table: str | None) -> dict[str, str]:
    digests = {"listing": listing_digest(found)}
    if table is not None:
        digests[shown(Path(table).name)] = sha256(Path(table))
    return digests
