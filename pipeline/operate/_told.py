"""Runs in words: a line for each, one of them in full, two of them side by side."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.operate._stored import Stored
from pipeline.train.checkpoints import step_of
from pipeline.train.tracking import CURVES, Tail

LINEAGE = ("data", "params", "code")
SPEED = "speed.jsonl"
_OWN_LINES = (*LINEAGE, "kind", "family", "begun", "trials")
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def table(runs: Sequence[Stored]) -> Iterator[str]:
    """A line a run: name, kind, status, best and last validation figure, size, age."""
    titles = ("name", "kind", "status", "best", "last", "figure", "size", "age")
    yield from _aligned([titles, *map(_row, runs)])


def in_full(run: Stored) -> Iterator[str]:
    """Everything that its folder tells of a run."""
    yield f"{run.name}: {run.what.get('kind', 'run.json is lost')}, {run.status()}"
    yield f"  folder  {run.folder.location} ({size(run.bytes)}, {age(run.age_s)} old)"
    for name in LINEAGE:
        if name in run.what:
            yield f"  {name:<6}  {run.what[name]}"
    yield from _titled("values", (f"{key}: {value}" for key, value in values(run.what).items()))
    yield from _titled("trials", run.what.get("trials", ()))
    yield from _titled("epochs", _epochs(run))
    yield from _titled("speed", _speed(run))
    yield from _titled("checkpoints", _checkpoints(run))


def difference(one: Stored, other: Stored) -> Iterator[str]:
    """What differs between what two runs are."""
    for name in LINEAGE:
        found = [str(run.what.get(name, "unknown")) for run in (one, other)]
        if name != "params":
            yield f"{name}: " + ("the same" if found[0] == found[1] else f"{found[0]} -> {found[1]}")
    first, second = values(one.what), values(other.what)
    keys = [key for key in dict.fromkeys((*first, *second)) if first.get(key, None) != second.get(key, None)]
    missing = "(none)"
    yield from _aligned([(key, str(first.get(key, missing)), "->", str(second.get(key, missing))) for key in keys])
    if not keys:
        yield "params: the same"


def values(what: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `run.json` by dotted keys."""
    return dict(_flat({name: value for name, value in what.items() if name not in _OWN_LINES}))


def size(count: int) -> str:
    """Of a file or folder, for people."""
    unit, name = next(((unit, name) for unit, name in ((10**9, "GB"), (10**6, "MB")) if count >= unit), (10**3, "KB"))
    return f"{count / unit:.1f} {name}"


def age(seconds: float) -> str:
    """In the largest unit of which there is one at least."""
    unit, name = next(((unit, name) for unit, name in _UNITS if seconds >= unit), (1, "s"))
    return f"{seconds / unit:.0f} {name}"


def _row(run: Stored) -> tuple[str, ...]:
    status = run.status()
    score = None if status == "damaged" else run.score()
    name, best, last = score or ("", None, None)
    shown = ["" if value is None else f"{value:.2f}" for value in (best, last)]
    return (run.name, run.what.get("kind", "?"), status, *shown, name, size(run.bytes), age(run.age_s))


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip()


def _titled(title: str, lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    found = list(lines)
    if found:
        yield title
        yield from (f"  {line}" for line in found)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _epochs(run: Stored) -> Iterator[str]:
    names = [name for name in CURVES if any(name in row for row in run.epochs)]
    rows = [[str(row["epoch"] + 1), str(row["step"]), *(f"{row[name]:.3f}" for name in names)] for row in run.epochs]
    if rows:
        yield from _aligned([["epoch", "step", *(f"val_{name}" for name in names)], *rows])


def _speed(run: Stored) -> Iterator[str]:
    lines = Tail(run.folder, SPEED).lines() if SPEED in run.files else []
    rows = [json.loads(line) for line in lines]
    if rows:
        names = list(rows[-1])
        yield from _aligned([names, *([_number(name, row.get(name)) for name in names] for row in rows)])


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name.endswith("_bytes"):
        return size(int(value))
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _checkpoints(run: Stored) -> Iterator[str]:
    ended = (run.finished or {}).get("checkpoint")
    for name in run.checkpoints:
        state = "ok" if run.is_whole(name) else "damaged"
        yield f"step {step_of(name):,}: {size(run.files[name].bytes)}, {state}" + (" (the end)" * (name == ended))
