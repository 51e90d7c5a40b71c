"""Where the files of a source are, and what they are called: safe to store, distinct, and within the folder named."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.errors import UserError


def shown(name: str) -> str:
    """A name as text that can be stored and printed: control characters, and bytes that are not UTF-8, as escapes."""
    return re.sub("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda found: _escape(found[0]), name)


def _escape(char: str) -> str:
    byte = ord(char) - 0xDC00  # as Python has the bytes from 0x80 of a name that is not UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else char.encode("unicode_escape").decode()


def distinct(names: Iterable[str]) -> dict[str, str]:
    """What each name is shown as -> the name, in the order of the first."""
    found: dict[str, str] = {}
    for text, name in sorted((shown(name), name) for name in names):
        while text in found:  # a byte shown as four letters, and a name that has these letters
            text += "'"
        found[text] = name
    return dict(sorted(found.items()))


def find_files(path: str, suffixes: tuple[str, ...], kind: str) -> tuple[str, dict[str, Path]]:
    """One file, all below a folder that end in `suffixes`, or those that a pattern matches.

    Hidden files and folders are not looked at. A pattern finds what links lead to, but `**` does not go through them.

    Args:
        kind: what a message calls such files.

    Returns:
        A name for all of them, and name -> path of each, relative where `path` is, in the order of names.

    Raises:
        UserError: there are none, or one below a folder is not to be opened: see `check_file`.
    """
    place = Path(path)
    if place.is_dir():
        root, found = place, [*_below(place, suffixes)]
    elif place.is_file():
        root, found = place.parent, [place]
    else:
        root = next(folder for folder in place.parents if not glob.has_magic(str(folder)))
        found = [*_matching(root, place)]
    if not found:
        raise UserError(
            f"data.source.path: {path}: no {kind}; set it to a folder that holds {', '.join(suffixes)} files, to one "
            f"of them, or to a pattern such as folder/train-*{suffixes[0]}"
        )
    for file in found:
        check_file(file, root if place.is_dir() else None)
    names = distinct(file.relative_to(root).as_posix() for file in found)
    own = place.stem if place.is_file() else root.resolve().name
    return shown(own) or "data", {text: root / name for text, name in names.items()}


def check_file(path: Path, folder: Path | None = None) -> None:
    """Refuse what is not to be opened.

    Raises:
        UserError: a pipe or device, which would be waited for without end, or a link that leads out of `folder`.
    """
    if folder is not None and leads_out(path, folder):
        raise UserError(f"{shown(str(path))}: a link to a place outside {folder} is not followed; put a copy there")
    if path.exists() and not path.is_file():
        raise UserError(f"{shown(str(path))}: expected a file, found a folder, pipe, socket or device; take it away")


def leads_out(path: str | Path, folder: str | Path) -> bool:
    """Whether `path` lies, once its links are followed, outside the folder."""
    root = os.path.realpath(folder)
    return os.path.commonpath([os.path.realpath(path), root]) != root


def _matching(root: Path, pattern: Path) -> Iterator[Path]:
    try:
        for match in root.glob(str(pattern.relative_to(root))):
            if not match.is_dir() and not any(part.startswith(".") for part in match.relative_to(root).parts):
                yield match
    except ValueError as error:
        raise UserError(f"data.source.path: {pattern}: not a pattern ({error}); correct it") from None


def _below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    def refused(error: OSError) -> None:  # else its files would be missing without a word
        raise UserError(f"data.source.path: {error.filename}: cannot be listed ({error.strerror}); allow it") from None

    for place, folders, names in os.walk(folder, onerror=refused):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if leads_out(Path(place, name), folder):
                check_file(Path(place, name), folder)
        yield from (Path(place, name) for name in names if name.lower().endswith(suffixes) and not name.startswith("."))
