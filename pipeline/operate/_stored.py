"""The runs that a store holds, as their files tell."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.errors import UserError, did_you_mean
from pipeline.train.checkpoints import is_whole, step_of
from pipeline.train.folders import File, Folder
from pipeline.train.lock import LEASE, LOCK, Owner, owner
from pipeline.train.storage import CHECKPOINTS, FINISHED, RUN, read_json
from pipeline.train.tracking import LOG, MetricLog, Row, figures
from vae_core.metrics.primary import primary

_OF_A_RUN = (RUN, FINISHED, LOG, LOCK, LEASE)


@dataclass(frozen=True)
class Stored:
    """A run's folder and what is in it, temporary files too."""

    name: str
    folder: Folder
    files: Mapping[str, File]

    @cached_property
    def what(self) -> dict[str, Any]:
        """Its `run.json`; empty where that is lost."""
        return read_json(self.folder, RUN) or {}

    @cached_property
    def finished(self) -> dict[str, Any] | None:
        return read_json(self.folder, FINISHED) if FINISHED in self.files else None

    @cached_property
    def holder(self) -> Owner | None:
        return owner(self.folder)

    @cached_property
    def rows(self) -> list[Row]:
        """Of its log. Raises UserError: a line is damaged."""
        return MetricLog(self.folder).rows() if LOG in self.files else []

    @property
    def epochs(self) -> list[Row]:
        """The validation rows, one an epoch."""
        return [row for row in self.rows if row["split"] == "val"]

    @property
    def checkpoints(self) -> list[str]:
        """Names of their files, in the order of their steps, damaged ones too."""
        names = [name for name in self.files if name.startswith(CHECKPOINTS) and step_of(name) >= 0]
        return sorted(names, key=lambda name: (step_of(name), name))

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    @property
    def age_s(self) -> float:
        """Since its last file was written."""
        return max(0.0, time.time() - max((file.modified for file in self.files.values()), default=0.0))

    def is_whole(self, checkpoint: str) -> bool:
        try:
            return is_whole(checkpoint, self.folder.read(checkpoint))
        except FileNotFoundError:  # it has been replaced by a newer one meanwhile
            return True

    def status(self) -> str:
        """One or a few words: finished, running, stopped, damaged."""
        if self.holder is not None:
            return f"running ({self.holder})"
        if self._is_damaged():
            return "damaged"
        if self.finished is not None:
            return "finished"
        return "stopped" + self._reached()

    def score(self) -> tuple[str, float, float] | None:
        """The primary validation figure, of a prior its cost: its name, its best value, its last."""
        epochs = [figures(row) for row in self.epochs] or [(self.finished or {}).get("figures") or {}]
        name = next(iter(epochs[-1]), "") if primary(epochs[-1]) not in epochs[-1] else primary(epochs[-1])
        values = [epoch[name] for epoch in epochs if name in epoch]
        return (name, min(values), values[-1]) if values else None

    def _is_damaged(self) -> bool:
        """What can be seen at once; at an address checkpoints are not read for it."""
        try:
            _ = self.rows
        except UserError:
            return True
        lost = (RUN in self.files and not self.what) or (FINISHED in self.files and self.finished is None)
        ended = (self.finished or {}).get("checkpoint")
        if lost or (ended is not None and ended not in self.files) or (self.checkpoints and not self.what):
            return True
        return self.folder.appends and not all(map(self.is_whole, self.checkpoints))

    def _reached(self) -> str:
        epochs = self.what.get("train", {}).get("epochs")
        if self.epochs or epochs is not None:
            return f" at epoch {len(self.epochs)}" + (f"/{epochs}" if epochs else "")
        return f" at step {step_of(self.checkpoints[-1]):,}" if self.checkpoints else ""


def stored_runs(store: Folder) -> list[Stored]:
    """Every run in a store, sorted by name."""
    found: dict[str, dict[str, File]] = {}
    for path, file in store.details().items():
        name, _, rest = path.partition("/")
        found.setdefault(name, {})[rest] = file
    return [Stored(name, store.sub(name), files) for name, files in sorted(found.items()) if _is_run(name, files)]


def chosen(runs: Sequence[Stored], names: Sequence[str], store: Folder) -> list[Stored]:
    """The runs of these names, or of the beginnings of names that are no other run's.

    Raises:
        UserError: there is none of a name, or several.
    """
    return [_one(runs, name, store) for name in dict.fromkeys(names)]


def _one(runs: Sequence[Stored], name: str, store: Folder) -> Stored:
    found = [run for run in runs if run.name == name] or [run for run in runs if run.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{name}: several runs begin so: {', '.join(run.name for run in found)}; give more of the name")
    nearest = did_you_mean(name, (run.name for run in runs))
    raise UserError(f"{name}: no run of this name in {store.location}{nearest}")


def _is_run(name: str, files: Mapping[str, File]) -> bool:
    return not name.startswith(".") and any(_tells(file) for file in files)


def _tells(file: str) -> bool:
    return file in _OF_A_RUN or file.startswith(CHECKPOINTS)
