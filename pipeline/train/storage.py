"""What a run's folder says of the run: what it is, and whether it is finished. The oldest finished ones go."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pipeline.files import parse_json
from pipeline.train.checkpoints import is_whole, step_of
from pipeline.train.folders import DiskFolder, Folder, ObjectFolder, Place, open_folder

__all__ = ["DiskFolder", "Folder", "ObjectFolder", "Place", "finish", "is_finished", "open_folder", "read_json",
           "record", "write_json"]  # fmt: skip

RUN, FINISHED = "run.json", "finished.json"
CHECKPOINTS = "checkpoints/"


def record(place: Place, what: Mapping[str, Any]) -> None:
    """Write what a run is to its `run.json`, unless it is there: `kind` and `family`, with `TrainRun.described`.

    A sweep names its trials' folders as `trials`, so that they are kept as long as it is.

    Raises:
        StorageFailed: the disk or the store.
    """
    folder = open_folder(place)
    values = json.loads(json.dumps(what, allow_nan=False))
    known = read_json(folder, RUN) or {}
    if values != {key: value for key, value in known.items() if key != "begun"}:
        write_json(folder, RUN, {**values, "begun": known.get("begun", time.time())})


def finish(place: Place, what: Mapping[str, Any]) -> None:
    """Mark a run as finished, with what is to be shown of it, such as its last figures.

    Raises:
        StorageFailed: the disk or the store.
    """
    folder = open_folder(place)
    newest = max(folder.names(CHECKPOINTS), key=step_of, default=None)
    write_json(folder, FINISHED, {**what, "checkpoint": newest, "at": time.time()})


def is_finished(place: Place) -> bool:
    """Whether a run is finished and the checkpoint that it ended with is there and undamaged."""
    folder = open_folder(place)
    finished = read_json(folder, FINISHED)
    if finished is None:
        return False
    name = finished.get("checkpoint", "")
    if not isinstance(name, str):
        return name is None
    if not name.startswith(CHECKPOINTS) or step_of(name) < 0 or name.count("/") > 1:
        return False
    with suppress(FileNotFoundError):
        return is_whole(name, folder.read(name))
    return False


def read_json(folder: Folder, name: str) -> dict[str, Any] | None:
    """An object of JSON; None: it is not there, or is damaged."""
    with suppress(FileNotFoundError, ValueError):
        value = parse_json(folder.read(name))
        return value if isinstance(value, dict) else None
    return None


def write_json(folder: Folder, name: str, value: Mapping[str, Any]) -> None:
    folder.write(name, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())
