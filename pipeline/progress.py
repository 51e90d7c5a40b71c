"""Progress for people: a bar on a terminal, a few plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def say(text: str) -> None:
    """One line to the user, above any bar."""
    tqdm.write(text, file=sys.stderr)


def track(items: Iterable[Item], *, total: int, what: str, unit: str) -> Iterator[Item]:
    """Pass `items` on, showing how many of `total` have come; without a terminal one line at the end."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, unit=unit, leave=False)
        return
    start = time.monotonic()
    yield from items
    say(f"{what}: {total:,} {unit} in {time.monotonic() - start:.1f} s")
