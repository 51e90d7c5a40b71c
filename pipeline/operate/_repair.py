"""What a kill, a full disk or a bad disk can leave of a run, and how each is mended."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import psutil

from pipeline import files
from pipeline.errors import Busy
from pipeline.operate._stored import Stored
from pipeline.train.checkpoints import latest, step_of
from pipeline.train.folders import DiskFolder, Folder, is_temporary
from pipeline.train.lock import LEASE, exclusive
from pipeline.train.storage import FINISHED, RUN, record
from pipeline.train.tracking import LOG

DAMAGED = "damaged/"  # where a run's last checkpoint goes when it is damaged and there is no other
RAY = "ray/"

Describe: TypeAlias = Callable[[str], dict[str, Any] | None]


@dataclass(frozen=True)
class Mend:
    """One thing that is wrong with a run.

    Attributes:
        what: what is wrong, and what is done about it.
        do: does it; None where nothing can be done.
    """

    what: str
    do: Callable[[], None] | None = None


def repair(run: Stored, describe: Describe, *, dry_run: bool) -> list[str]:
    """Find what is wrong with a run, and mend it unless `dry_run`. Returns a line for each.

    Args:
        describe: the `run.json` that belongs to a folder's name, where params.yaml still describes that run.

    Raises:
        Busy: a process works on it.
        StorageFailed: the disk or the store.
    """
    if run.holder is not None:
        raise Busy(f"{run.folder.location}: {run.holder} is working here; wait for it, or stop it")
    said = []
    with nullcontext() if dry_run else exclusive(run.folder):
        for mend in _wrong(run, describe):
            said.append(mend.what)
            if mend.do is not None and not dry_run:
                mend.do()
    return said


def _wrong(run: Stored, describe: Describe) -> Iterator[Mend]:
    whole = [name for name in run.checkpoints if run.is_whole(name)]
    yield from _left(run)
    yield from _damaged(run, whole)
    yield from _cut(run)
    kept = [name for name in whole if step_of(name) <= _last_complete_step(run)]
    for name in whole:
        if name not in kept:
            yield Mend(f"{name}: the log has lost rows before it; removed", _remove(run, name))
    yield from _unfinished(run, kept)
    yield from _lost_record(run, describe)


def _left(run: Stored) -> Iterator[Mend]:
    """Files of processes that were killed."""
    for name in filter(is_temporary, run.files):
        yield Mend(f"{name}: left by a writer that was killed; removed", _remove(run, name))
    if LEASE in run.files:
        yield Mend(f"{LEASE}: left by a process that is gone; removed")  # by `exclusive`
    if of_ray := [name for name in run.files if name.startswith(RAY)]:
        yield Mend(f"{RAY}: left by a driver that was killed; removed", _remove(run, *of_ray))


def _damaged(run: Stored, whole: Sequence[str]) -> Iterator[Mend]:
    for name in run.checkpoints:
        if name in whole:
            continue
        if whole:
            yield Mend(f"{name}: damaged; removed, the run goes on from another one", _remove(run, name))
        else:
            what = f"{name}: damaged, and there is no other; moved to {DAMAGED}, the run begins anew"
            yield Mend(what, _aside(run, name))


def _cut(run: Stored) -> Iterator[Mend]:
    """Logs that end in half a line, or hold a damaged one."""
    for name in run.files:
        if not name.endswith(".jsonl"):
            continue
        lines = run.folder.read(name)
        good = _good(lines)
        if good == lines:
            continue
        half = b"\n" not in lines[len(good) :]
        how = "half a line at its end" if half else f"line {good.count(10) + 1} of {lines.count(10)} is damaged"
        yield Mend(f"{name}: {how}; cut there", _write(run, name, good))


def _unfinished(run: Stored, kept: Sequence[str]) -> Iterator[Mend]:
    """A finished run has the checkpoint that it ended with."""
    if FINISHED not in run.files:
        return
    if run.finished is None:
        how = "damaged; removed, the same command finishes the run again"
    elif run.finished.get("checkpoint") not in (None, *kept):
        how = "its checkpoint is lost; removed, the same command trains the rest"
    else:
        return
    yield Mend(f"{FINISHED}: {how}", _remove(run, FINISHED))


def _lost_record(run: Stored, describe: Describe) -> Iterator[Mend]:
    if run.what:
        return
    what = describe(run.name)
    if what is None:
        yield Mend(f"{RUN}: lost; params.yaml describes no such run now, so this one can be shown or removed, no more")
    else:
        yield Mend(f"{RUN}: lost; written again from params.yaml", lambda: record(run.folder, what))


def _good(lines: bytes) -> bytes:
    """The lines before the first that is half or damaged."""
    end = 0
    for line in lines.split(b"\n")[:-1]:
        try:
            files.parse_json(line)
        except ValueError:
            break
        end += len(line) + 1
    return lines[:end]


def _last_complete_step(run: Stored) -> float:
    """Up to which step a checkpoint may stand: for every epoch that ended before it the log has the figures."""
    if not _has_log(run):
        return float("inf")
    lines = _good(run.folder.read(LOG)) if LOG in run.files else b""
    rows = [row for row in map(json.loads, lines.splitlines()) if row["split"] == "val"]
    complete = next((n for n, row in enumerate(rows) if row["epoch"] != n), len(rows))
    steps = run.what.get("steps_per_epoch", rows[0]["step"] if rows else 0)
    return float((complete + 1) * steps - 1)


def _has_log(run: Stored) -> bool:
    """Whether it is a run of the training loop, as its checkpoints tell where all else is lost."""
    if LOG in run.files or run.what:
        return run.what.get("kind") in (None, "train", "trial")
    newest = latest(run.folder.sub("checkpoints"))
    return newest is not None and "loader" in newest.state


def _remove(run: Stored, *names: str) -> Callable[[], None]:
    return lambda: run.folder.remove(*names)


def _write(run: Stored, name: str, data: bytes) -> Callable[[], None]:
    return lambda: run.folder.write(name, data)


def _aside(run: Stored, name: str) -> Callable[[], None]:
    def move() -> None:
        run.folder.write(DAMAGED + name.rpartition("/")[2], run.folder.read(name))
        run.folder.remove(name)

    return move


def left_in(store: Folder, *, dry_run: bool) -> list[str]:
    """Remove what is in no run: folders that were being removed or made by a process that is dead, and empty ones."""
    left = sorted({name.partition("/")[0] for name in store.details() if is_temporary(name.partition("/")[0])})
    dead = [name for name in left if not _is_alive(name)]
    empty = _empty(store) if isinstance(store, DiskFolder) else []
    if not dry_run:
        for name in (*dead, *empty):
            store.sub(name).clear()
    said = [f"{name}: left by a process that was killed; removed" for name in dead]
    return said + [f"{name}: empty; removed" for name in empty]


def _is_alive(temporary: str) -> bool:
    pid = temporary.split(".")[-2]
    return not pid.isdigit() or psutil.pid_exists(int(pid))


def _empty(store: DiskFolder) -> list[str]:
    folders = sorted(path for path in store.path.glob("*") if path.is_dir())
    return [path.name for path in folders if not any(each.is_file() for each in path.rglob("*"))]
