"""What is below a folder of images: which files are rows, and which of them cannot be used."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.sources.paths import distinct, leads_out, shown
from pipeline.errors import UserError


@dataclass(frozen=True, slots=True)
class Found:
    """A file, or a row of the table without one.

    Attributes:
        name: below the folder, as the file system has it.
        error, detail: why it cannot be used, where that is known already.
        row: of the table; None where it has none.
    """

    name: str
    size: int = 0
    error: str | None = None
    detail: str | None = None
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """Images by the names that are their ids, in order; and what a message says of other files, where there are."""

    found: dict[str, Found]
    others: str | None


def list_images(folder: Path, table: str | None) -> Listing:
    """Images below `folder`, but for the `table`; hidden files and folders are not looked at.

    Raises:
        UserError: a folder cannot be listed.
    """
    extensions = _extensions()
    found: dict[str, Found] = {}
    others: list[str] = []
    waiting = [""]
    while waiting:
        place = waiting.pop()
        for entry in _entries(folder, place):
            name = f"{place}{entry.name}"
            if _is_folder(entry):
                if not entry.is_symlink():
                    waiting.append(f"{name}/")
                elif leads_out(entry.path, folder):
                    found[name] = Found(name, 0, "symlink", "a link to a folder elsewhere is not followed")
            elif os.path.splitext(entry.name)[1].lower() in extensions:
                found[name] = _image(entry, name, folder)
            elif table is None or not os.path.exists(entry.path) or not os.path.samefile(entry.path, table):
                others.append(name)
    text = f"{len(others):,} files that are no images were passed over, such as {shown(min(others, default=''))}"
    return Listing({text: found[name] for text, name in distinct(found).items()}, text if others else None)


def _extensions() -> set[str]:
    """Of the formats that Pillow reads, in lower case."""
    from PIL import Image  # not at import: finding its formats takes a while

    return {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _entries(folder: Path, place: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder / place) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(
            f"data.source.path: {shown(str(folder / place))}: cannot be listed ({error.strerror}). "
            "Allow it, or move the folder away"
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or through a folder that is not ours to read
        return False


def _image(entry: os.DirEntry[str], name: str, folder: Path) -> Found:
    if entry.is_symlink() and leads_out(entry.path, folder):
        return Found(name, 0, "symlink", "a link to a file elsewhere is not followed")
    try:
        facts = entry.stat()
    except OSError as error:
        return Found(name, 0, "unreadable", error.strerror or type(error).__name__)
    if not stat.S_ISREG(facts.st_mode):  # a pipe would be waited for without end
        return Found(name, 0, "unreadable", "expected a file, found a pipe, socket or device")
    return Found(name, facts.st_size)
