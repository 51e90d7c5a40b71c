"""What a check of a file finds, and the file's text with the line of every key."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]
Config: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at a key. `todo`: nothing is wrong yet, but the user has something to do first."""

    at: KeyPath
    text: str
    todo: bool = False


Problems: TypeAlias = Iterator[Problem]


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A YAML file: what Ray or Kubernetes reads in it, and where each key is.

    Attributes:
        values: plain dictionaries and lists, merge keys resolved.
        tree: the same as ruamel's round trip has it, with positions.
        pins: package -> version of constraints.txt.
        root: the folder that `ray up` is run in.
    """

    path: Path
    values: Config
    tree: Any
    root: Path
    pins: Mapping[str, str] = field(default_factory=dict)

    def line(self, at: KeyPath) -> int:
        """The line of the key or item at `at`, or of the nearest section around it that the file has."""
        node, line = self.tree, 0
        for part in at:
            owner: Any = _owner(node, part)
            if owner is None:
                break
            place = owner.lc  # ruamel's lines and columns
            line = (place.item if isinstance(node, list) else place.key)(part)[0]
            node = owner[part]
        return int(line) + 1

    def told(self, problems: Iterable[Problem]) -> list[tuple[str, bool]]:
        """`FILE:LINE: key.path: what; remedy` with its `todo`, by line, each mistake of the text once."""
        rows = sorted({(self.line(p.at), p.text, p.todo): p for p in reversed(list(problems))}.items())
        return [(f"{self.path}:{line}: {_dotted(p.at)}: {text}", todo) for (line, text, todo), p in rows]


def _owner(node: Any, part: str | int) -> Any:
    """The mapping that holds the key in the text: this one, or one that it merges (`<<: *other`); or the list."""
    if isinstance(node, Mapping):
        own = getattr(getattr(node, "lc", None), "data", None) or {}
        if part in own:
            return node
        merged = list(getattr(node, "merge", ()))
        return next((owner for other in merged if (owner := _owner(other, part)) is not None), None)
    if isinstance(node, list) and hasattr(node, "lc") and isinstance(part, int) and part < len(node):
        return node
    return None


def _dotted(at: KeyPath) -> str:
    return ".".join(map(str, at)) or "file"


def section(value: Any, *keys: str | int) -> Config:
    """The mapping at `keys`; empty where there is none, which the schema tells of."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def items(value: Any, *keys: str) -> list[Any]:
    """The list at `keys`; empty where there is none."""
    *parents, last = keys
    found = section(value, *parents).get(last)
    return found if isinstance(found, list) else []


def texts(value: Any, at: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Every string below `value` with its place, keys included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*at, key), str(key)
            yield from texts(item, (*at, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from texts(item, (*at, i))
    elif isinstance(value, str):
        yield at, value
