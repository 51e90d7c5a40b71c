"""Splits that the publisher fixed, as names tell them."""

import re
from collections.abc import Iterable

from pipeline import progress

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NAMES = "(train|validation|valid|val|test)"
HUB_FILE = re.compile(rf"{_NAMES}(-\d{{5}}-of-\d{{5}}(-[0-9a-f]{{16}})?)?\.parquet", re.IGNORECASE)
TAR_FILE = re.compile(rf"{_NAMES}(-.*)?\.(tar|tar\.gz|tgz)", re.IGNORECASE)


def split_of(text: str) -> str | None:
    """Our name of a split; None: no split is called that."""
    return SPLITS.get(text.strip().lower())


def official(found: Iterable[str]) -> tuple[str, ...]:
    """The splits in order, where both train and test are there; else none."""
    there = set(found)
    return tuple(split for split in ("train", "val", "test") if split in there) if {"train", "test"} <= there else ()


def splits_of_files(names: Iterable[str], pattern: re.Pattern[str], path: str) -> dict[str, str]:
    """Each file -> its split, where every name or its folder tells one, and both train and test are there; else empty.

    Args:
        names: below `path`, which is for the line that says so.
        pattern: of the name of a file that tells its split, which is the first group.
    """
    told = {name: _told(name, pattern) for name in names}
    splits = {name: split for name, split in told.items() if split is not None}
    if len(splits) < len(told) or not official(splits.values()):
        return {}
    progress.say(f"{path}: splits {', '.join(official(splits.values()))} from the names of the files")
    return splits


def _told(name: str, pattern: re.Pattern[str]) -> str | None:
    """The split that a file's own name or its folder's tells; None: neither, or one each."""
    *folders, own = name.split("/")
    match = pattern.fullmatch(own)
    told = {split_of(text) for text in (*folders[-1:], match[1] if match else "")} - {None}
    return told.pop() if len(told) == 1 else None
