"""What is below a folder of images: which files are rows, and which of them cannot be used."""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.sources.paths import distinct, leads_out, shown
from pipeline.errors import UserError

_OTHER_FORMATS = {f".{name}" for name in "heic heif avif jxl dng cr2 cr3 nef arw svg psd raw".split()}
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_KINDS_SHOWN = 8


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

    def nothing(self) -> str | None:
        """What is there where no image can be used; None: some can."""
        if not all(found.error for found in self.found.values()):
            return None
        formats = [found.name for found in self.found.values() if found.error == "unsupported_format"]
        text = f"{len(formats):,} images to convert to JPEG or PNG ({kinds(formats)})" if formats else None
        return "; ".join(text for text in (text, self.others) if text) or ""


def list_images(folder: Path, table: str | None) -> Listing:
    """Images below `folder`, but for the `table`; hidden files and folders are not looked at.

    Raises:
        UserError: a folder cannot be listed.
    """
    extensions = _extensions()
    found: dict[str, Found] = {}
    others: list[str] = []
    for name, entry in walk(folder, found):
        if (extension := extension_of(name)) in extensions:
            found[name] = found_file(entry, name, folder)
        elif table is not None and os.path.exists(entry.path) and os.path.samefile(entry.path, table):
            continue
        elif not extension and _begins_as_image(entry, folder):
            found[name] = found_file(entry, name, folder)
        elif extension in _OTHER_FORMATS:
            expected = "a format that Pillow reads here", "JPEG or PNG"
            found[name] = unsupported(found_file(entry, name, folder), extension, *expected)
        else:
            others.append(name)
    are = ("no image that Pillow reads", "no images that Pillow reads")
    return Listing({text: found[name] for text, name in distinct(found).items()}, passed_over(others, *are))


def walk(folder: Path, found: dict[str, Found]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file below `folder` with its name there; hidden files and folders are not looked at.

    Args:
        found: where folders are put that are links to elsewhere.

    Raises:
        UserError: a folder cannot be listed.
    """
    waiting = [""]
    while waiting:
        place = waiting.pop()
        for entry in _entries(folder, place):
            name = f"{place}{entry.name}"
            if not _is_folder(entry):
                yield name, entry
            elif not entry.is_symlink():
                waiting.append(f"{name}/")
            elif leads_out(entry.path, folder):
                found[name] = Found(name, 0, "symlink", "a link to a folder elsewhere is not followed")


def passed_over(names: list[str], one: str, several: str) -> str | None:
    """What a message says of files that are neither rows nor errors; None: there are none."""
    if not names:
        return None
    are, they = (f"file is {one}", "it is") if len(names) == 1 else (f"files are {several}", "they are")
    return f"{len(names):,} {are}: {kinds(names)}; {they} not counted"


def listing_digest(found: dict[str, Found]) -> str:
    """sha256 of the names and sizes."""
    lines = "".join(f"{name}\0{each.size}\n" for name, each in found.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def kinds(names: list[str]) -> str:
    """Extensions with their numbers of files, the most frequent first."""
    counts = sorted(Counter(extension_of(name) for name in names).items(), key=lambda item: (-item[1], item[0]))
    texts = [f"{count:,} {shown(extension) or 'without extension'}" for extension, count in counts[:_KINDS_SHOWN]]
    rest = sum(count for _, count in counts[_KINDS_SHOWN:])
    return ", ".join([*texts, *([f"{rest:,} others"] if rest else [])])


def extension_of(name: str) -> str:
    """In lower case with its dot; empty: it has none."""
    return os.path.splitext(name)[1].lower().rstrip(".")


def _begins_as_image(entry: os.DirEntry[str], folder: Path) -> bool:
    try:
        if leads_out(entry.path, folder) or not entry.is_file():
            return False
        with open(entry.path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    is_webp, is_bmp = start[:4] == b"RIFF" and start[8:12] == b"WEBP", start[:2] == b"BM" and start[6:10] == bytes(4)
    return start.startswith(_MAGIC) or is_webp or is_bmp


def unsupported(found: Found, extension: str, expected: str, instead: str) -> Found:
    """`found` with the error of a format that is known and not read."""
    if found.error is not None:
        return found
    detail = f"expected {expected}, found {extension[1:].upper()}; convert it to {instead}"
    return replace(found, error="unsupported_format", detail=detail)


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


def found_file(entry: os.DirEntry[str], name: str, folder: Path) -> Found:
    """A file below `folder`, with the reason where it is not to be opened."""
    if entry.is_symlink() and leads_out(entry.path, folder):
        return Found(name, 0, "symlink", "a link to a file elsewhere is not followed")
    try:
        facts = entry.stat()
    except OSError as error:
        return Found(name, 0, "unreadable", error.strerror or type(error).__name__)
    if not stat.S_ISREG(facts.st_mode):  # a pipe would be waited for without end
        return Found(name, 0, "unreadable", "expected a file, found a pipe, socket or device")
    return Found(name, facts.st_size)
