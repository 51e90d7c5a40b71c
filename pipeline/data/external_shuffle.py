"""Bring the prepared rows into the order of the shards in two linear passes, whatever their number.

The places are cut into groups that fit in memory. `scatter` reads some parts of the table once and writes their rows
into one scratch file, a record batch for each group; `gather` reads the batches of one group from every file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.data import table

CHUNK_BYTES = 64 * 1024**2  # of pixels, sorted in memory at once
_COLUMNS = ("id", "image", "label", "attributes", "embedding")
_PLACES = "places.npy"


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts of the prepared table that follow each other.

    Attributes:
        number: of these parts among the runs of parts.
        first: row of the table with which they start.
    """

    number: int
    first: int
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Shuffle:
    """The scratch folder of one shuffle.

    Attributes:
        borders: first place of each group, and the number of all rows.
    """

    folder: Path
    borders: tuple[int, ...]

    def start(self, places: NDArray[np.int64]) -> None:
        """Set the place of each row of the prepared table."""
        np.save(self.folder / _PLACES, places, allow_pickle=False)

    def scatter(self, parts: Parts) -> None:
        """Write the rows of these parts to the scratch folder; again, where a try was cut off.

        Raises:
            UserError: a part is damaged.
        """
        places = np.load(self.folder / _PLACES, mmap_mode="r", allow_pickle=False)
        path = self.folder / f"rows-{parts.number:06d}.arrow"
        temporary = path.with_name(f".{path.name}.tmp")
        writer, row = None, parts.first
        with pa.OSFile(str(temporary), "wb") as sink:
            for chunk in _chunks(parts.paths):
                rows = self._sorted(chunk, np.array(places[row : row + chunk.num_rows]))
                row += chunk.num_rows
                if writer is None:
                    writer = pa.ipc.new_file(sink, rows[0].schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))
                for batch in rows:
                    writer.write_batch(batch)
            if writer is not None:
                writer.close()
        if writer is None:
            temporary.unlink()
        else:
            temporary.replace(path)

    def gather(self, group: int) -> Iterator[pa.RecordBatch]:
        """The rows of a group, with the column `place`, in no order."""
        for path in sorted(self.folder.glob("rows-*.arrow")):
            with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
                for number in range(group, file.num_record_batches, len(self.borders) - 1):
                    yield file.get_batch(number)

    def _sorted(self, chunk: pa.RecordBatch, places: NDArray[np.int64]) -> list[pa.RecordBatch]:
        """One batch a group."""
        groups = np.searchsorted(self.borders, places, side="right") - 1
        rows = chunk.append_column("place", pa.array(places)).take(pa.array(np.argsort(groups, kind="stable")))
        ends = np.cumsum(np.bincount(groups, minlength=len(self.borders) - 1)).tolist()
        return [rows.slice(start, end - start) for start, end in zip([0, *ends], ends, strict=False)]


def runs(parts: Sequence[tuple[Path, int]], rows: int) -> list[Parts]:
    """Parts with their rows, in runs of about `rows` rows."""
    found: list[Parts] = []
    paths: list[Path] = []
    first = end = 0
    for path, count in parts:
        paths.append(path)
        end += count
        if end - first >= rows:
            found.append(Parts(len(found), first, tuple(paths)))
            first, paths = end, []
    return [*found, Parts(len(found), first, tuple(paths))] if paths else found


def _chunks(paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """The rows of parts in batches of about CHUNK_BYTES."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for path in paths:
        for batch in table.read_part(path, _COLUMNS):
            waiting.append(batch)
            size += batch.nbytes
            if size >= CHUNK_BYTES:
                yield pa.concat_batches(waiting)
                waiting, size = [], 0
    if size:
        yield pa.concat_batches(waiting)
