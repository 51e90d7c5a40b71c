"""Samples in a foreign tar: members that share a name up to the first dot, as WebDataset groups them, become rows."""

import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.config import WebDatasetSource
from pipeline.data.sources.npy import parse_npy
from pipeline.data.sources.paths import shown
from pipeline.data.sources.tar_walk import Damaged, Member

TEXT_BYTES = 1000  # of a label


class BadSample(Exception):
    """A sample that cannot be used; `error` is the ledger's short name for why, the message its detail."""

    def __init__(self, error: str, detail: str) -> None:
        super().__init__(detail)
        self.error = error


class Row(NamedTuple):
    """A row to be: its id within the tar, and its image and other members to read; or why it has none."""

    name: str
    image: str = ""
    members: tuple[tuple[str, Member], ...] = ()
    error: str | None = None
    detail: str | None = None


class Values(NamedTuple):
    """What a sample holds besides its image."""

    label: Any = None
    attributes: list[float | None] | None = None
    embedding: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What is taken from each sample, and how."""

    config: WebDatasetSource
    max_bytes: int

    @property
    def images(self) -> list[str]:
        return [extension.lower() for extension in self.config.image]

    @property
    def others(self) -> set[str]:
        """Extensions of the members, other than the image, that are read."""
        given = {extension_of(spec) for spec in (self.config.label, self.config.embedding) if spec is not None}
        return given | ({"json"} if self.config.attributes else set())

    def rows(self, members: Iterable[Member]) -> list[Row]:
        """A row for each sample and for each member that is in none.

        Raises:
            Damaged: the members of a sample are not next to one another.
        """
        found = [member for member in members if not member.is_note]
        rows: list[Row] = []
        seen = set()
        for key, sample in itertools.groupby((m for m in found if m.parts[0] is not None), lambda m: m.parts[0]):
            group = list(sample)
            if key in seen:
                raise Damaged(group[0].at, f"{group[0].name!r} stands apart from the other members of its sample")
            seen.add(key)
            rows += self._sample(str(key), group)
        return rows + [
            _alone(member, "not_a_sample", "expected a name KEY.EXTENSION") for member in found if not member.parts[0]
        ]

    def _sample(self, key: str, group: Sequence[Member]) -> Iterator[Row]:
        members = {member.parts[1]: member for member in group}
        if len(members) < len(group):
            images = [member for member in group if member.parts[1] in self.images]
            detail = "expected each extension once in a sample, which is what a name has before the first dot"
            yield from (_alone(member, "duplicate_member", detail) for member in images or group[:1])
            return
        image = next((extension for extension in self.images if extension in members), None)
        dotted = [member for member in group if self._is_dotted(member.parts[1], image)]
        detail = (
            "expected no dot in the key: as WebDataset reads it, a name ends and its extension begins at the first dot"
        )
        yield from (_alone(member, "key_has_dots", detail) for member in dotted)
        if image is not None:
            used = {extension: members[extension] for extension in (image, *self.others) if extension in members}
            yield self._fault(key, used) or Row(key, image, tuple(used.items()))
        elif not dotted:
            found = f"expected one of {', '.join(self.images)}; found {', '.join(sorted(members))[:200]}"
            yield Row(key, error="image_missing", detail=found)

    def _is_dotted(self, extension: str, image: str | None) -> bool:
        """Whether this is the end of a name with a dot in it (v1.0.png) rather than an extension (mask.png)."""
        if "." not in extension or extension in self.others or extension in self.images:
            return False
        return extension.rpartition(".")[2] in self.images and (image is None or extension[0].isdigit())

    def _fault(self, key: str, used: dict[str, Member]) -> Row | None:
        """The row of a sample with a member that is not to be read."""
        for member in used.values():
            name = shown(member.name)
            if member.kind != "file":
                error = "symlink" if member.kind == "link" else "unreadable"
                return Row(key, error=error, detail=f"{name}: expected a file, found a {member.kind}")
            if member.size > self.max_bytes:
                detail = f"{name}: expected at most {self.max_bytes:,} bytes, found {member.size:,}"
                return Row(key, error="too_many_bytes", detail=detail)
        return None

    def values(self, contents: dict[str, bytes]) -> Values:
        """What the members of a sample, by extension, hold besides the image; null what they do not.

        Raises:
            BadSample: a member is not what its extension says.
        """
        label, keys, embedding = self.config.label, self.config.attributes, self.config.embedding
        document = _document(contents["json"]) if "json" in contents and "json" in self.others else {}
        return Values(
            _label(label, contents, document),
            [_number(document.get(key)) for key in keys] if keys else None,
            None if embedding is None else _embedding(embedding, contents, document),
        )

    def attributes_in(self, content: bytes) -> set[str]:
        """Those of the attributes that a .json names.

        Raises:
            BadSample: it holds no object.
        """
        return set(self.config.attributes) & _document(content).keys() if self.config.attributes else set()


def extension_of(spec: str) -> str:
    return "json" if spec.startswith("json:") else spec.lower()


def _alone(member: Member, error: str, detail: str) -> Row:
    """A row for one member; the place keeps apart those of the same name."""
    name = f"{shown(member.name)}: " if error != "not_a_sample" else ""
    return Row(f"{member.name}@{member.at}", error=error, detail=f"{name}{detail}")


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSample("json_unreadable", str(error)[:200]) from None
    if not isinstance(document, dict):
        raise BadSample("json_unreadable", f"expected an object, found {type(document).__name__}")
    return document


def _label(spec: str | None, contents: dict[str, bytes], document: dict[str, Any]) -> Any:
    """A number as int, a class name as text; None: there is none."""
    if spec is None or spec.startswith("json:"):
        value = None if spec is None else document.get(spec.removeprefix("json:"))
        return _text(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else value
    text = _text(contents.get(extension_of(spec), b""))
    return int(text) if text is not None and re.fullmatch(r"[+-]?[0-9]+", text) else text


def _text(data: bytes) -> str | None:
    if len(data) > TEXT_BYTES:
        raise BadSample("label_unreadable", f"expected at most {TEXT_BYTES} bytes, found {len(data):,}")
    try:
        return data.decode("utf-8").strip() or None
    except UnicodeDecodeError:
        raise BadSample("label_unreadable", f"expected UTF-8 text, found {data[:40]!r}") from None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _embedding(spec: str, contents: dict[str, bytes], document: dict[str, Any]) -> NDArray[np.float32] | None:
    extension = extension_of(spec)
    if extension not in contents:
        return None
    value = document.get(spec.removeprefix("json:"))
    if spec.startswith("json:") and value is None:
        return None
    try:
        vector = parse_npy(contents[extension]) if not spec.startswith("json:") else np.array(value)
    except (ValueError, OverflowError) as error:
        raise BadSample("embedding_unreadable", str(error)[:200]) from None
    if vector.dtype.kind not in "iuf" or vector.ndim != 1:
        raise BadSample("embedding_unreadable", f"expected numbers [E], found {vector.dtype} {list(vector.shape)}")
    with np.errstate(over="ignore"):
        return vector.astype(np.float32)


def png(data: bytes) -> bytes:
    """The pixels of an .npy as an image file, so that all images of this source are files; no value changes."""
    try:
        pixels = parse_npy(data)
    except ValueError as error:
        raise BadSample("undecodable", str(error)) from None
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))
    if pixels.dtype != np.uint8 or not fits or 0 in pixels.shape:
        expected = "expected uint8 [H, W] or [H, W, C] with C of 1, 3 or 4"
        raise BadSample("undecodable", f"{expected}, found {pixels.dtype} {list(pixels.shape)}")
    file = io.BytesIO()
    flat = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    Image.fromarray(np.ascontiguousarray(flat)).save(file, "PNG", compress_level=0)
    return file.getvalue()
