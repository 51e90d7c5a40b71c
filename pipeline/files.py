"""Atomic writes and digests: a reader sees the old file or the whole new one, never a part."""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil


def write_bytes(path: Path, data: bytes) -> None:
    """Write under a temporary name, sync, rename, sync the folder. An error leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Indented, keys in the order given, finite numbers only."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """Raises ValueError: it is not JSON, or is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory that takes the place of `path` when the block ends well, and vanishes when it does not.

    Whatever kills the process, `path` is the old directory, the new one, or not there; what is left over has a hidden
    name, and goes when the next process starts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):  # by a process that was killed
        owner = left.name.split(".")[-2]  # in a container it can have had the number that is ours now
        if left.is_dir() and owner.isdigit() and (int(owner) == os.getpid() or not psutil.pid_exists(int(owner))):
            shutil.rmtree(left, ignore_errors=True)
    temporary, old = (path.with_name(f".{path.name}.{part}{os.getpid()}.tmp") for part in ("", "old."))
    temporary.mkdir()
    try:
        yield temporary
        sync_directory(temporary)
        _exchange(temporary, path, old)
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


def _exchange(new: Path, path: Path, old: Path) -> None:
    """Rename `new` to `path`, and what was there to `old`: to remove it would show a part of it for a while."""
    if path.is_symlink() or not path.is_dir():
        new.rename(path)
        return
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise


def sync_directory(path: Path) -> None:
    """Flush every file below `path`, and the directory itself, to the disk."""
    for entry in (*path.rglob("*"), path):
        sync(entry)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
