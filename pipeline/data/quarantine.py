"""Rows that cannot be used: found, put aside with the reason, and counted. None is lost, none stops the others."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import files
from pipeline.data.shape import Shape

LEDGER = pa.schema({name: pa.string() for name in ("source", "id", "error", "detail")})

Fault: TypeAlias = tuple[str, NDArray[np.bool_], Callable[[int], str]]  # error, rows that have it, detail of a row


class Quarantine:
    """Sorts the rows of a source, batch by batch, into usable ones and ledger entries."""

    def __init__(self, shape: Shape, classes: tuple[str, ...]) -> None:
        self._shape, self._classes = shape, classes
        self._ids: set[str] = set()
        self._entries: list[tuple[str, str | None, str, str]] = []

    def usable(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows without fault, in their order; the others go to the ledger under the first fault found."""
        usable = np.ones(batch.num_rows, bool)
        for error, rows, detail in self._faults(batch):
            for row in np.flatnonzero(rows & usable).tolist():
                self._entries.append((batch["source"][row].as_py(), batch["id"][row].as_py(), error, detail(row)))
            usable &= ~rows
        return batch if usable.all() else batch.filter(pa.array(usable))

    def counts(self) -> dict[str, int]:
        """Entries by error, the names in order."""
        return dict(sorted(Counter(entry[2] for entry in self._entries).items()))

    def write(self, path: Path) -> None:
        """The ledger as Parquet with the columns of `LEDGER`, also when it is empty."""
        columns = list(zip(*self._entries, strict=True)) or [()] * len(LEDGER)
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table([pa.array(column, pa.string()) for column in columns], schema=LEDGER), sink)
        files.write_bytes(path, sink.getvalue().to_pybytes())

    def _faults(self, batch: pa.RecordBatch) -> Iterator[Fault]:
        lengths = pc.fill_null(pc.binary_length(batch["image"]), 0).to_numpy()
        height, width, channels = self._shape
        expected = f"expected {self._shape.size} bytes ({height} x {width} x {channels})"
        yield "image_size", lengths != self._shape.size, lambda row: f"{expected}, found {lengths[row]}"

        none = batch["label"].is_null().to_numpy(zero_copy_only=False)
        labels = batch["label"].fill_null(0).to_numpy()
        last = len(self._classes) - 1
        if self._classes:
            yield "label_missing", none, lambda _: f"expected a label from 0 to {last}, found none"
        wrong = ~none & ((labels < 0) | (labels > last))
        valid = f"a label from 0 to {last}" if self._classes else "no label, because there are no classes"
        yield "label_range", wrong, lambda row: f"expected {valid}, found {labels[row]}"

        ids = batch["id"].to_pylist()
        yield "id_missing", np.array([name is None for name in ids], bool), lambda _: "expected an id, found none"
        yield "id_duplicate", np.array([self._seen(name) for name in ids], bool), lambda _: "the id occurs before"

    def _seen(self, name: str | None) -> bool:
        known = name in self._ids
        if name is not None:
            self._ids.add(name)
        return known
