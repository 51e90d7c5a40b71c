"""A data set that the package `datasets` saved to disk, read with Arrow alone.

Its files are Arrow streams beside state.json, which lists them, and dataset_info.json, which describes the columns; a
`DatasetDict` is a folder of such folders and a dataset_dict.json that names them.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

import pyarrow as pa

from pipeline import files, progress
from pipeline.data.config import HuggingFaceSource
from pipeline.data.sources import tables
from pipeline.data.sources.base import BATCH_ROWS, Source
from pipeline.data.sources.columns import sound, whole
from pipeline.data.sources.image_columns import check_encoded, encoded, encoded_lengths, runs
from pipeline.data.sources.paths import check_file, shown
from pipeline.data.sources.splits import SPLITS
from pipeline.errors import UserError

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
SAMPLE_BYTES = 1024**2  # of each end of a file, for its digest


def open_huggingface(config: HuggingFaceSource, classes: tuple[str, ...] | None) -> Source:
    """The rows of a saved `Dataset`, or of every split of a saved `DatasetDict`.

    Raises:
        UserError: it is no such folder, a file is missing or damaged, or a column is not what `config` says.
    """
    root, columns = Path(config.path), config.columns
    splits = _splits(root)
    arrows = [file for split, folder in splits.items() for file in _files(root, folder, split)]
    first = arrows[0]
    check_encoded(first.schema, config.image, first.name, "Cast the column: ds.cast_column(NAME, Image())")
    tables.check_columns(columns, first.schema, first.name)
    for file in arrows:
        tables.check_alike(file.schema, file.name, first.schema, first.name, tables.used(columns, config.image))
        tables.check_names(file.names(columns.label), file.name, first.names(columns.label), first.name)
    if not any(batch.num_rows for file in arrows for batch in _stream(file.where, file.path, (config.image,))):
        raise UserError(f"data.source.path: {root}: no rows in it. Save a data set that has some")
    scan = _Scan(tuple(arrows))
    meaning = tables.learn(columns, classes, first.schema, scan, config.path, first.names(columns.label))
    official = meaning.official if columns.split is not None else _official(root, splits)
    fixed = {split: SPLITS[split] for split in splits if official and columns.split is None}
    partitions = tuple(part for split in splits for part in _parts(arrows, split, fixed, config.image, meaning))
    return Source(
        name=shown(root.resolve().name) or "huggingface",
        partitions=partitions,
        pixels=None,
        classes=meaning.classes,
        attributes=columns.attributes,
        embedding=meaning.embedding,
        digests={file.name: _digest(file) for file in arrows},
        official=official,
    )


@dataclass(frozen=True, slots=True)
class _ArrowFile:
    """An Arrow stream of a split.

    Attributes:
        path: absolute, because another process reads it.
        where: its path as the user gave it, for messages.
        features: as dataset_info.json has them.
    """

    path: Path
    where: str
    name: str
    split: str
    schema: pa.Schema
    features: Any

    def names(self, label: str | None) -> tuple[str, ...] | None:
        return tables.feature_names(self.features, label)


@dataclass(frozen=True, slots=True)
class _Scan:
    """Reads single columns of all files."""

    files: tuple["_ArrowFile", ...]

    def __call__(self, column: str) -> Iterator[pa.Array]:
        for file in self.files:
            for batch in _stream(file.where, file.path, (column,)):
                yield batch.column(column)


@dataclass(frozen=True, slots=True)
class ArrowPart:
    """Some record batches of one file.

    Attributes:
        where: the file as the user gave it, for messages.
        name: of the file.
        prefix: of the ids, before the row's number in its split.
        split: of every row, where the publisher fixed it.
        first, stop: numbers of the record batches.
        first_row: number in the split of the first row.
    """

    path: str
    where: str
    name: str
    prefix: str
    split: str | None
    first: int
    stop: int
    first_row: int
    rows: int
    image: str
    meaning: tables.Meaning

    def batches(self) -> Iterator[pa.RecordBatch]:
        row = self.first_row
        columns = tables.used(self.meaning.columns, self.image)
        for batch in _stream(self.where, Path(self.path), columns, self.first, self.stop):
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield from self._rows(batch.slice(start, BATCH_ROWS), row + start)
            row += batch.num_rows
        if row - self.first_row != self.rows:
            raise UserError(f"{self.where}: expected {self.rows:,} rows, found {row - self.first_row:,}. Start again")

    def _rows(self, batch: pa.RecordBatch, row: int) -> Iterator[pa.RecordBatch]:
        with whole(self.where, "an Arrow stream"):
            for start, stop in runs(encoded_lengths(batch.column(self.image))):
                part = batch.slice(start, stop - start)
                ids = (f"{self.prefix}:{number}" for number in range(row + start, row + stop))
                images = encoded(part.column(self.image))
                yield tables.row_batch(part, images, self.meaning, ids, source=self.name, split=self.split)


def _splits(root: Path) -> dict[str, Path]:
    """Name -> folder of each split; a `Dataset` saved alone is called "data"."""
    if not root.is_dir():
        raise UserError(f"data.source.path: {root}: no such folder; set it to what ds.save_to_disk(...) wrote")
    if not (root / "dataset_dict.json").is_file():
        return {"data": root}
    names = _json(root / "dataset_dict.json").get("splits")
    if not isinstance(names, list) or not names or not all(_is_name(name) for name in names):
        raise UserError(f"{root / 'dataset_dict.json'}: expected the names of splits, found {names!r}. Save it again")
    return {name: root / name for name in names}


def _official(root: Path, splits: Iterable[str]) -> tuple[str, ...]:
    """The splits, where both train and test are there."""
    found = {name: SPLITS.get(name) for name in splits}
    if not {"train", "test"} <= set(found.values()):
        if "data" not in found:
            progress.say(f"{root}: does not have both train and test; the rows are split anew")
        return ()
    unknown = next((name for name, split in found.items() if split is None), None)
    if unknown is not None:
        raise UserError(
            f"data.source.path: {root}: expected the splits train, validation and test, found {unknown!r} too. "
            f"Save it without: del ds[{unknown!r}]"
        )
    return tuple(split for split in ("train", "val", "test") if split in found.values())


def _files(root: Path, folder: Path, split: str) -> list[_ArrowFile]:
    """The files of a split, in the order of its rows."""
    if not (folder / "state.json").is_file():
        raise UserError(
            f"data.source.path: {folder}: expected state.json, as ds.save_to_disk(...) writes it; found none. "
            "For a folder of Parquet files use kind: parquet"
        )
    state = _json(folder / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise UserError(
            f"data.source.path: {folder}: its rows were selected or shuffled, and the files still hold the old order. "
            "Save it again: ds.flatten_indices().save_to_disk(...)"
        )
    listed = state.get("_data_files")
    entries = listed if isinstance(listed, list) else []
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    paths = [folder / name for name in names if _is_name(name)]
    if not paths or len(paths) < len(names):
        raise UserError(f"{folder / 'state.json'}: expected the names of data files, found {listed!r}. Save it again")
    info = folder / "dataset_info.json"
    features = _json(info).get("features") if info.is_file() else None
    for path in paths:
        check_file(path, root)
    return [
        _ArrowFile(path.absolute(), str(path), shown(path.relative_to(root).as_posix()), split, _schema(path), features)
        for path in paths
    ]


def _is_name(name: Any) -> TypeGuard[str]:
    """A plain name: what a data set lists cannot lead out of its folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and name.isprintable() and not set(name) & set("/\\")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = files.read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}). Save the data set again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object, found {type(content).__name__}. Save the data set again")
    return content


def _schema(path: Path) -> pa.Schema:
    with whole(path, "an Arrow stream"), pa.OSFile(str(path)) as file:
        schema: pa.Schema = sound(pa.ipc.open_stream(file).schema)
        file.seek(max(file.size() - len(END_OF_STREAM), 0))
        if file.read() != END_OF_STREAM:  # a file that was cut between two record batches reads without an error
            raise pa.ArrowInvalid("truncated: it does not end as an Arrow stream does")
        return schema


def _stream(
    where: str, path: Path, columns: tuple[str, ...], first: int = 0, stop: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Record batches `first` to `stop` that share the memory of the mapped file; with these columns."""
    with whole(where, "an Arrow stream"), pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        for batch in islice(stream, first, stop):
            yield sound(batch.select([*columns]))
        if stop is None and file.tell() != file.size():  # eight damaged bytes can look like the end
            raise pa.ArrowInvalid("it goes on after its end")


def _parts(
    arrows: list[_ArrowFile], split: str, fixed: Mapping[str, str], image: str, meaning: tables.Meaning
) -> Iterator[ArrowPart]:
    """Whole record batches of the files of one split, together at most PARTITION_ROWS and PARTITION_BYTES."""
    row = 0
    for file in arrows:
        if file.split != split:
            continue
        counts = [(batch.num_rows, batch.column(image).nbytes) for batch in _stream(file.where, file.path, (image,))]
        for first, stop in tables.together(counts):
            rows = sum(count for count, _ in counts[first:stop])
            place = (str(file.path), file.where, file.name)
            yield ArrowPart(*place, split, fixed.get(split), first, stop, row, rows, image, meaning)
            row += rows


def _digest(file: _ArrowFile) -> str:
    """sha256 of the file's length and of both its ends."""
    with whole(file.where, "an Arrow stream"), file.path.open("rb") as stream:
        size = file.path.stat().st_size
        digest = hashlib.sha256(size.to_bytes(8, "little") + stream.read(SAMPLE_BYTES))
        stream.seek(max(size - SAMPLE_BYTES, 0))
        digest.update(stream.read())
        return digest.hexdigest()
