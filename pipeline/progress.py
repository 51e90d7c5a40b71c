"""Progress for people: a bar on a terminal, a few plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from pipeline.errors import printable

Item = TypeVar("Item")

_copies: list[Path] = []


def say(text: str) -> None:
    """One line to the user, above any bar."""
    text = printable(text)
    tqdm.write(text, file=sys.stderr)
    for path in _copies:
        with suppress(OSError), path.open("a") as file:  # a full disk is told of by what needs the room
            file.write(f"{text}\n")


@contextmanager
def copied(path: Path) -> Iterator[None]:
    """Append what this process says meanwhile to a file too: nobody sees the standard error of a Ray worker."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _copies.append(path)
    try:
        yield
    finally:
        _copies.remove(path)


def track(items: Iterable[Item], *, total: int, what: str, unit: str) -> Iterator[Item]:
    """Pass `items` on, showing how many of `total` have come; without a terminal one line at the end."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, unit=unit, leave=False)
        return
    start = time.monotonic()
    yield from items
    say(f"{what}: {total:,} {unit} in {time.monotonic() - start:.1f} s")
