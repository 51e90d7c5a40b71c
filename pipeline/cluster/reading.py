"""A YAML file of anyone's, read without trust: no object is made of it, and it cannot fill the memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.cluster.findings import Document
from pipeline.cluster.recipe import CONSTRAINTS, pins
from pipeline.errors import UserError

MOST_BYTES = 256 * 1024
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
        _refuse_tags(path, text)
        tree = YAML(typ="rt").load(text)
        plain = YAML(typ="safe", pure=True)
        plain.version = (1, 1)
        values = plain.load(text) if _size(tree, path) else None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = (error.problem or "expected YAML").strip().splitlines()[0]
        raise UserError(f"{path}:{line}: not valid YAML: {problem}") from None
    except YAMLError as error:  # a character that no YAML file may hold
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    except ValueError as error:  # a date or a number that is none
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; a cluster file has {MOST_DEPTH} levels at most") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}:1: expected keys such as cluster_name or kind, found {type(values).__name__}")
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
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: larger than {MOST_BYTES // 1024} KiB, which no cluster file is")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None


def _refuse_tags(path: Path, text: str) -> None:
    """Of a tag such as !!python/object other readers make an object, which runs code."""
    for event in YAML(typ="rt", pure=True).parse(text):
        tag = str(getattr(event, "tag", None) or "")
        if tag and tag != "!" and tag.removeprefix(STANDARD) not in PLAIN:
            place = f"{path}:{event.start_mark.line + 1}"
            raise UserError(f"{place}: the tag {tag.replace(STANDARD, '!!')}: a cluster file needs none; remove it")


def _size(tree: Any, path: Path) -> int:
    """Values in the tree, each as often as an alias repeats it."""
    known: dict[int, int] = {}

    def count(node: Any, depth: int) -> int:
        if not isinstance(node, (Mapping, list)):
            return 1
        if depth > MOST_DEPTH:
            raise UserError(f"{path}: nested more than {MOST_DEPTH} levels deep, or within itself; write it out")
        if id(node) not in known:
            children = list(node.values()) if isinstance(node, Mapping) else node
            known[id(node)] = 1 + sum(count(child, depth + 1) for child in children)
        if known[id(node)] > MOST_VALUES:
            raise UserError(f"{path}: its aliases unfold to more than {MOST_VALUES} values; write it out")
        return known[id(node)]

    return count(tree, 0)
