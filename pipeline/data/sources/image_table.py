"""The table beside a folder of images: CSV or Parquet, with a row for each image."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from pipeline.data.config import ImageFolderSource
from pipeline.data.sources import tables
from pipeline.data.sources.columns import is_text, missing, plain_type, sound, whole
from pipeline.data.sources.labels import nfc
from pipeline.data.sources.paths import shown
from pipeline.errors import UserError

FILE = "file"  # the column of the table that names the image
NUMBERS = r"^-?(0|[1-9][0-9]{0,17})(\.0*)?$"


@dataclass(frozen=True, slots=True)
class Table:
    """The table, what its columns mean, and the row of each file that it names."""

    rows: pa.Table
    meaning: tables.Meaning
    places: dict[str, int]


def read_table(path: Path, config: ImageFolderSource, classes: tuple[str, ...] | None, found: Collection[str]) -> Table:
    """Read it whole.

    Args:
        found: names of the images.

    Raises:
        UserError: it is damaged, lacks a column, or is about other images.
    """
    is_parquet = path.suffix.lower() in (".parquet", ".pq")
    rows = _read_parquet(path, config) if is_parquet else _read_csv(path, config, classes)
    if not rows.num_rows:
        raise UserError(f"data.source.table: {path}: expected a row for each image, found none")

    def scan(column: str) -> Iterable[pa.Array]:
        yield from rows.column(column).chunks

    meaning = tables.learn(config.columns, classes, rows.schema, scan, str(path))
    places = _places(rows.column(FILE).to_pylist(), found, path)
    if not places.keys() & set(found):
        raise UserError(
            f"data.source.table: {path}: expected paths below {config.path} such as {min(found)!r}, found only others, "
            f"such as {min(places)!r}. Correct the column {FILE!r}"
        )
    return Table(rows, meaning, places)


def _check_columns(schema: pa.Schema, config: ImageFolderSource, path: Path) -> None:
    problem = missing(schema, FILE)
    if problem is not None:
        only = schema.names[0] if len(schema.names) == 1 else ""
        hint = ". Separate the columns by commas" if re.search("[;\t|]", only) else ""
        raise UserError(f"data.source.table: {path}: {problem}; expected the path of each image in it{hint}")
    kind = schema.field(FILE).type
    if not is_text(plain_type(kind)):
        raise UserError(f"data.source.table: {path}: column {FILE!r}: expected text, found {kind}")
    tables.check_columns(config.columns, schema, str(path))


def _read_parquet(path: Path, config: ImageFolderSource) -> pa.Table:
    with whole(path, "Parquet"), parquet.ParquetFile(path) as file:
        sound(file.schema_arrow)
        _check_columns(file.schema_arrow, config, path)
        rows = file.read(columns=tables.used(config.columns, FILE))
        rows.validate(full=True)
        return rows


def _read_csv(path: Path, config: ImageFolderSource, classes: tuple[str, ...] | None) -> pa.Table:
    given = config.columns
    if given.embedding is not None:
        raise UserError(
            f"data.source.columns.embedding: {path}: expected null, because a CSV cannot hold vectors; found "
            f"{given.embedding!r}. Write the table as Parquet with a column of lists"
        )
    text = [name for name in (FILE, given.label, given.id, given.group, given.split) if name is not None]
    convert: dict[str, Any] = {
        "column_types": dict.fromkeys(text, pa.string()),  # "007" stays what it is
        "null_values": [""],  # "NA" and "null" can be names of classes
        "strings_can_be_null": True,
    }
    parse = csv.ParseOptions(newlines_in_values=True)
    with whole(path, "CSV"):
        _check_utf8(path)
        names = csv.open_csv(path, parse_options=parse, convert_options=csv.ConvertOptions(**convert)).schema
        _check_columns(names, config, path)
        options = csv.ConvertOptions(**convert, include_columns=tables.used(config.columns, FILE))
        rows = csv.read_csv(path, parse_options=parse, convert_options=options)
    tables.check_columns(given, rows.schema, str(path))  # again: a type is only known after the last row
    if given.label is None:
        return rows
    place = rows.schema.get_field_index(given.label)
    return rows.set_column(place, given.label, _numbers_if_all(rows.column(given.label), classes))


def _check_utf8(path: Path) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = line[error.start : error.start + 1].hex()
                raise UserError(
                    f"data.source.table: {path}: expected UTF-8, found the byte 0x{found} in line {number:,}; "
                    "save it as UTF-8"
                ) from None


def _numbers_if_all(labels: pa.ChunkedArray, classes: tuple[str, ...] | None) -> pa.ChunkedArray:
    """Texts as whole numbers where every one is such, and they are not the names of classes."""
    texts = labels.unique().drop_null()
    if len(texts) == 0 or set(texts.to_pylist()) <= set(classes or ()):
        return labels
    if not pc.all(pc.match_substring_regex(texts, NUMBERS)).as_py():
        return labels
    return labels.cast(pa.float64())


def _places(files: Sequence[str | None], found: Collection[str], path: Path) -> dict[str, int]:
    """Name of each file -> its row in the table; a row without a name is under its number."""
    spelled = {nfc(name): name for name in found} | {name: name for name in found}
    places: dict[str, int] = {}
    for row, value in enumerate(files):
        name = f"{shown(path.name)}:{row}" if value is None else _normal(value, spelled)
        if name in places:
            raise UserError(
                f"data.source.table: {path}: {name!r} is in the rows {places[name] + 1:,} and {row + 1:,}. "
                "Keep one row a file"
            )
        places[name] = row
    return places


def _normal(name: str, spelled: Mapping[str, str]) -> str:
    """A path below the folder as the listing has it; letters with accents may be composed otherwise."""
    name = shown(name)
    path = re.sub(r"^(\./)+", "", name.replace("\\", "/"))
    return next((spelled[text] for text in (name, path, nfc(name), nfc(path)) if text in spelled), path)
