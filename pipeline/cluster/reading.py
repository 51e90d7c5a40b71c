"""A YAML file of anyone's, read without trust: no object is made of it, and it cannot fill the memory."""

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from pipeline.cluster.findings import Document
from pipeline.cluster.recipe import CONSTRAINTS, pins
from pipeline.errors import UserError

MOST_BYTES = 64 * 1024
MOST_VALUES = 20_000  # after every alias is followed
MOST_DEPTH = 50
STANDARD = "tag:yaml.org,2002:"
PLAIN = {"map", "seq", "str", "int", "float", "bool", "null", "merge"}


def read(path: Path, root: Path | None = None) -> Document:
    """The file as Ray and Kubernetes read it (YAML 1.1), with the line of every key.

    Raises:
        UserError: no such file, too large, not UTF-8, not YAML, a key twice, a tag that would make an object, aliases
            that unfold without end, or no mapping. One line, with the place.
    """
    root = Path() if root is None else root
    text = _text(path)
    try:
        _refuse_tags_and_depth(path, text)
        tree = YAML(typ="rt", pure=True).load(text)
        _refuse_nested_merges(path, tree)
        plain = YAML(typ="safe", pure=True)
        plain.version = (1, 1)
        values = plain.load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = (error.problem or "expected YAML").strip().splitlines()[0]
        raise UserError(f"{path}:{line}: not valid YAML: {problem}") from None
    except YAMLError as error:  # a character that no YAML file may hold
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    except ValueError as error:  # a date or a number that is none
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}:1: expected keys such as cluster_name or kind, found {type(values).__name__}")
    _refuse_unfolding(path, values)
    pinned = pins((root / CONSTRAINTS).read_text(encoding="utf-8")) if (root / CONSTRAINTS).exists() else {}
    return Document(path=path, values=values, tree=tree, root=root, pins=pinned)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `python -m pipeline cluster render` writes the project's own") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder; name a file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a file that you may read") from None
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: larger than {MOST_BYTES // 1024} KiB, which no cluster file is")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None


def _refuse_tags_and_depth(path: Path, text: str) -> None:
    """Before anything is made of the text: a tag such as !!python/object runs code in other readers, and thousands of
    brackets within one another keep a parser busy for minutes."""
    depth = 0
    for event in YAML(typ="rt", pure=True).parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MOST_DEPTH:
            line = event.start_mark.line + 1
            raise UserError(f"{path}:{line}: nested more than {MOST_DEPTH} levels deep, which no cluster file is")
        tag = str(getattr(event, "tag", None) or "")
        if tag and tag != "!" and tag.removeprefix(STANDARD) not in PLAIN:
            place = f"{path}:{event.start_mark.line + 1}"
            raise UserError(f"{place}: the tag {tag.replace(STANDARD, '!!')}: a cluster file needs none; remove it")


def _refuse_nested_merges(path: Path, tree: Any) -> None:
    """`<<` of mappings that merge others copies them: ten at a time, seven levels deep, ten million keys."""
    seen: set[int] = set()
    nodes = deque([tree])
    while nodes:
        node = nodes.popleft()
        if not isinstance(node, (Mapping, list)) or id(node) in seen:
            continue
        seen.add(id(node))
        merged = list(getattr(node, "merge", ()))
        if len(merged) > 1 or any(list(getattr(other, "merge", ())) for other in merged):
            line = getattr(getattr(node, "lc", None), "line", 0) + 1
            raise UserError(f"{path}:{line}: merges (<<) several mappings, or one that merges others; write it out")
        nodes += [*merged, *(node.values() if isinstance(node, Mapping) else node)]


def _refuse_unfolding(path: Path, values: Any) -> None:
    """Refuse what is within itself, or too much once every alias is followed."""
    known: dict[int, int] = {}

    def count(node: Any, depth: int) -> int:
        if not isinstance(node, (dict, list)):
            return 1
        if depth > MOST_DEPTH:
            raise UserError(f"{path}: nested more than {MOST_DEPTH} levels deep, or within itself; write it out")
        if id(node) not in known:
            children = list(node.values()) if isinstance(node, dict) else node
            known[id(node)] = 1 + sum(count(child, depth + 1) for child in children)
        if known[id(node)] > MOST_VALUES:
            raise UserError(f"{path}: its aliases unfold to more than {MOST_VALUES} values; write it out")
        return known[id(node)]

    count(values, 0)
