"""What the command `registry` prints."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.git import text_at
from pipeline.registry.artifact import Artifact, artifact_in, config_of
from pipeline.registry.names import STAGE
from pipeline.registry.promotion import Promotion
from pipeline.registry.versions import History, Version
from vae_core.metrics.primary import primary

HEADER = ("family", "in prod", "commit", "since", "test figure", "newest")


def overview(root: Path, families: Iterable[str], current: Collection[str]) -> list[str]:
    """A line a family that has a version or is one of `current`."""
    histories = (History.of(root, family) for family in families)
    rows = [_row(root, history) for history in histories if history.events or history.family in current]
    return [*_table([HEADER, *rows]), "", "test figure: of the best model on the whole test split, nats an image"]


def _row(root: Path, history: History) -> tuple[str, ...]:
    champion, newest = history.champion(), history.versions[-1:]
    last = newest[0].version if newest else "-"
    if champion is None:
        return (history.family, "-", "-", "-", "-", last)
    since = history.assignments()[-1].date
    figure = _figure(root, champion)
    return (history.family, champion.version, champion.commit[:10], f"{since:%Y-%m-%d %H:%M}", figure, last)


def in_full(root: Path, family: str) -> list[str]:
    """Every version of a family, the newest first."""
    history = History.of(root, family)
    if not history.versions:
        return [f"{family}: no versions; `python -m pipeline registry promote {family}` makes the first"]
    lines: list[str] = []
    for version in reversed(history.versions):
        mark = f"  <- {STAGE}" if version == history.champion() else ""
        lines += [f"{version.tag}{mark}", *(f"  {name:<10}{value}" for name, value in _facts(root, history, version))]
    return lines


def _facts(root: Path, history: History, version: Version) -> Iterator[tuple[str, str]]:
    yield "commit", version.commit
    yield "registered", f"{version.date:%Y-%m-%d %H:%M} UTC by {version.by}: {version.message}"
    for each in (event for event in history.events if event.stage and event.commit == version.commit):
        verb = "in" if each.action == "assign" else "out of"
        yield f"{verb} {each.stage}", f"{each.date:%Y-%m-%d %H:%M} UTC by {each.by}: {each.message} ({each.tag})"
    yield "test", _figure(root, version)
    try:
        made = artifact_in(root, history.family, version.commit)
    except UserError as error:  # a tag that `registry promote` did not make
        yield "artifact", str(error)
    else:
        yield from _made(root, made)


def _made(root: Path, made: Artifact) -> Iterator[tuple[str, str]]:
    yield "artifact", f"{made.path}, {made.files} files, {made.bytes:,} bytes, DVC digest {made.digest}"
    yield "shards", f"DVC digest {made.data}"
    config = config_of(root, made)
    if config is None:
        yield "lineage", "unknown: neither the cache nor the DVC remote has the files (`dvc fetch --all-tags`)"
        return
    yield from config.get("lineage", {}).items()


def _figure(root: Path, version: Version) -> str:
    scores = json.loads(text_at(root, version.commit, f"results/evaluate/{version.family}.json") or "{}")
    return _told(scores.get("best", {}).get("test", {}))


def _told(figures: Mapping[str, Any]) -> str:
    if not figures:
        return "unknown"
    name = primary(figures)
    return f"{name} {figures[name]:.2f}"


def told(done: Promotion, stage: str, pushed: str | None, *, dry_run: bool) -> list[str]:
    """What was done, or would be."""
    version, before = done.version, done.previous
    if not done.tags:
        return [f"{version.tag} ({version.commit[:10]}) is in {stage} already; nothing to do"]
    was = f"instead of {before.version} ({before.commit[:10]})" if before is not None else "the first one"
    where = f"here and in {pushed}" if pushed else "here"
    made = f"tags {' and '.join(done.tags)}, {where}"
    if dry_run:
        return [f"would bring {version.tag} ({version.commit[:10]}) into {stage}, {was}", f"would make {made}"]
    hint = [] if pushed else [f"others see it after `git push origin {' '.join(done.tags)}` and `dvc push`"]
    return [f"{version.tag} ({version.commit[:10]}) is in {stage} now, {was}", f"made {made}", *hint]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
