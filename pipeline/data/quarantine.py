"""Rows that cannot be used: found, put aside with the reason, and counted. None is lost, none stops the others."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import files

LEDGER = pa.schema({name: pa.string() for name in ("source", "id", "error", "detail")})

COPY = "copy_in_other_split"  # a row that could be used, but must not: its image is in a split of higher rank
PARTIAL = "partial_segment"  # the end of a recording, where the configuration says to drop it
MEANT = (COPY, PARTIAL)  # nothing is wrong with these rows

Fault: TypeAlias = tuple[str, NDArray[np.bool_], Callable[[int], str]]  # error, rows that have it, detail of a row


class Entry(NamedTuple):
    """A row of the ledger."""

    source: str | None
    id: str | None
    error: str
    detail: str


class Expected(NamedTuple):
    """What every row must have: a label below `classes`, so many attributes, so long an embedding; 0: none of these."""

    classes: int
    attributes: tuple[str, ...]
    embedding: int


def usable(batch: pa.RecordBatch, expected: Expected) -> tuple[pa.RecordBatch, list[Entry]]:
    """The rows of a source without fault, in their order, and the others under the first fault found."""
    good = np.ones(batch.num_rows, bool)
    entries = []
    for error, rows, detail in _faults(batch, expected):
        for row in np.flatnonzero(rows & good).tolist():
            name = error or batch["error"][row].as_py()
            entries.append(Entry(batch["source"][row].as_py(), batch["id"][row].as_py(), name, detail(row)))
        good &= ~rows
    return (batch if good.all() else batch.filter(pa.array(good))), entries


def counts(entries: Iterable[Entry]) -> dict[str, int]:
    """Entries by error, the names in order."""
    return dict(sorted(Counter(entry.error for entry in entries).items()))


def write_ledger(path: Path, entries: Iterable[Entry]) -> None:
    """The ledger as Parquet with the columns of `LEDGER`, also when it is empty."""
    columns = list(zip(*entries, strict=True)) or [()] * len(LEDGER)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table([pa.array(column, pa.string()) for column in columns], schema=LEDGER), sink)
    files.write_bytes(path, sink.getvalue().to_pybytes())


def _faults(batch: pa.RecordBatch, expected: Expected) -> Iterator[Fault]:
    ids = batch["id"].is_null().to_numpy(zero_copy_only=False)
    yield "", batch["error"].is_valid().to_numpy(zero_copy_only=False), lambda row: batch["detail"][row].as_py() or ""
    yield "id_missing", ids, lambda _: "expected an id, found none"
    missing = batch["image"].is_null().to_numpy(zero_copy_only=False)
    yield "image_missing", missing, lambda _: "expected an image, found none"
    yield from _label_faults(batch, expected.classes)
    names = expected.attributes
    yield from _vector_faults(batch, "attribute", len(names), lambda place: f" in {names[place]}")
    yield from _vector_faults(batch, "embedding", expected.embedding, lambda place: f" at place {place}")


def _label_faults(batch: pa.RecordBatch, classes: int) -> Iterator[Fault]:
    none = batch["label"].is_null().to_numpy(zero_copy_only=False)
    labels = batch["label"].fill_null(0).to_numpy()
    last = classes - 1
    if classes:
        yield "label_missing", none, lambda _: f"expected a label from 0 to {last}, found none"
    wrong = ~none & ((labels < 0) | (labels > last))
    valid = f"a label from 0 to {last}" if classes else "no label, because there are no classes"
    yield "label_range", wrong, lambda row: f"expected {valid}, found {labels[row]}"


def _vector_faults(batch: pa.RecordBatch, what: str, size: int, where: Callable[[int], str]) -> Iterator[Fault]:
    """Vectors of another length than `size`, and those with a number that is missing, infinite or NaN."""
    column = batch[f"{what}s" if what == "attribute" else what]
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    yield f"{what}_size", lengths != size, lambda row: f"expected {size} numbers, found {lengths[row]}"
    bad: dict[int, tuple[int, object]] = {}
    owners = pc.list_parent_indices(column).to_numpy()
    values = column.flatten()
    numbers = values.fill_null(float("nan")).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for at in np.flatnonzero(~np.isfinite(numbers)).tolist():
        row = int(owners[at])
        bad.setdefault(row, (at - int(starts[row]), values[at].as_py()))
    rows = np.zeros(batch.num_rows, bool)
    rows[list(bad)] = True

    def detail(row: int) -> str:
        place, value = bad[row]
        return f"expected finite numbers, found {'none' if value is None else value}{where(place)}"

    yield f"{what}_not_finite", rows, detail
