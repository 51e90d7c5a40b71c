"""The one stream of a run's figures, and the curves that are made from it."""

import json
import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from pipeline.errors import UserError
from pipeline.files import parse_json
from pipeline.train.folders import Folder, Place, open_folder

Row: TypeAlias = dict[str, Any]

LOG = "metrics.jsonl"
COUNTERS = ("step", "epoch", "samples", "split")
CURVES = ("neg_elbo_nats", "distortion_nats", "rate_nats")


class MetricLog:
    """Rows {step, epoch, samples, split, name: value}, one JSON object a line, in a run's folder. One writer.

    On a disk each row is there at once, and lasts after `flush`. At an address rows are gathered until `flush`, which
    may run in another thread than `write`.
    """

    def __init__(self, place: Place, name: str = LOG) -> None:
        self.folder, self.name = open_folder(place), name
        self._gathered: list[bytes] = []
        self._flushing = threading.Lock()

    def rewind(self, step: int) -> None:
        """Forget the rows after `step`, which a run that resumes there will write again."""
        kept = b"".join(_line(row) for row in self.rows() if row["step"] <= step)
        self.folder.write(self.name, kept)

    def write(self, *, step: int, epoch: int, samples: int, split: str, values: Mapping[str, float]) -> None:
        line = _line({"step": step, "epoch": epoch, "samples": samples, "split": split, **values})
        if self.folder.appends:
            self.folder.append(self.name, line)
        else:
            self._gathered.append(line)

    def flush(self) -> None:
        """Let every row last; a checkpoint whose rows are lost would leave a gap, so this comes before it."""
        with self._flushing:
            if self.folder.appends:
                self.folder.sync(self.name)
            elif gathered := self._gathered[:]:
                self.folder.append(self.name, b"".join(gathered))
                del self._gathered[: len(gathered)]

    def rows(self) -> list[Row]:
        """Every complete row that was written; a kill can leave half a line at the end.

        Raises:
            UserError: a line before the last one is damaged.
        """
        return Tail(self.folder, self.name).rows() + [json.loads(line) for line in self._gathered]

    def epochs(self) -> list[dict[str, float]]:
        """The validation figures of each finished epoch, in order."""
        return [figures(row) for row in self.rows() if row["split"] == "val"]


class Tail:
    """The lines that come to the end of a file, each read once; all of them again when the file was rewritten."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self._last, self._end = b"", 0  # the last line that was read, by which a rewritten file is noticed

    def lines(self) -> list[bytes]:
        """Every complete line that came since the last call."""
        found = self._from(self._end - len(self._last))
        if not found.startswith(self._last):
            self._last, self._end = b"", 0
            found = self._from(0)
        whole = found[len(self._last) : found.rfind(b"\n") + 1]
        lines = [line + b"\n" for line in whole.split(b"\n")[:-1]]
        self._end += len(whole)
        self._last = lines[-1] if lines else self._last
        return lines

    def rows(self) -> list[Row]:
        """Likewise, of a log.

        Raises:
            UserError: a line is damaged.
        """
        try:
            rows = [parse_json(line) for line in self.lines()]
            if not all(isinstance(row, dict) and row.keys() >= {*COUNTERS} for row in rows):
                raise ValueError
            return rows
        except ValueError:
            raise UserError(
                f"{self._folder.location}/{self._name}: a damaged line; `python -m pipeline runs repair` mends it"
            ) from None

    def _from(self, start: int) -> bytes:
        with suppress(FileNotFoundError):
            return self._folder.read(self._name, start)
        return b""


def figures(row: Row) -> dict[str, float]:
    """What a row says besides where in the run it was written."""
    return {name: value for name, value in row.items() if name not in COUNTERS}


def curves(rows: Sequence[Row]) -> str:
    """A tab-separated table, one line an epoch: epoch, step, then train and validation figures."""
    names = [f"{split}_{name}" for split in ("train", "val") for name in CURVES]
    lines = ["\t".join(["epoch", "step", *names])]
    last: dict[str, Row] = {}
    for row in rows:
        last[row["split"]] = row
        if row["split"] == "val":
            found = [f"{last[split].get(name, math.nan):.6f}" for split in ("train", "val") for name in CURVES]
            lines.append("\t".join([str(row["epoch"] + 1), str(row["step"]), *found]))
    return "\n".join(lines) + "\n"


def _line(row: Row) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"
