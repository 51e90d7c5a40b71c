"""What pydantic found wrong in params.yaml, in the file's own terms: key, expected, got, nearest valid name."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, get_args, get_origin

from pydantic import ValidationError

from pipeline.errors import did_you_mean
from vae_core.config import RangeError

KeyPath: TypeAlias = tuple[str | int, ...]

SCALARS = ("float", "int", "str", "bool")

_NOUNS = {
    "int": "an integer",
    "float": "a number",
    "finite": "a finite number",
    "string": "text",
    "bool": "true or false",
    "tuple": "a list",
}


def explain(error: ValidationError, raw: Mapping[str, Any], root: type) -> Iterator[tuple[KeyPath, str]]:
    """Where in the file, and what is wrong, once for each mistake.

    A misspelt key is not also reported as missing; of a section with the wrong kind, only the kind is.
    """
    found = [
        (at, problem) for problem in map(dict, error.errors()) if (at := _key_path(problem, raw, root)) is not None
    ]
    misspelt = {at[:-1] for at, problem in found if _is_unknown(problem) and _near(at, raw, root)}
    of_other_kind = {at[:-1] for at, problem in found if at[-1:] == ("kind",) and not _is_missing(problem)}
    problems: dict[KeyPath, list[str]] = {}
    for at, problem in found:
        if _is_missing(problem) and at[:-1] in misspelt:
            continue
        if (_is_missing(problem) or _is_unknown(problem)) and at[:-1] in of_other_kind:
            continue
        unknown = f"unknown key{did_you_mean(str(at[-1]), _siblings(at, raw, root))}" if _is_unknown(problem) else ""
        problems.setdefault(at, []).append(unknown or describe(problem))
    for at, texts in problems.items():
        yield at, _joined(texts)


def describe(problem: Any) -> str:
    """`expected an integer, got '3'` for one of pydantic's error records."""
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, RangeError):
        return f"expected {cause.expected}, got {cause.got!r}"
    kind = problem["type"].rsplit("_", 1)[0]
    if _is_missing(problem):
        return "missing, and it has no default"
    if problem["type"] == "literal_error":
        return f"expected {problem['ctx']['expected']}, got {problem['input']!r}"
    if problem["type"] == "union_tag_invalid":
        return _other_kind(problem["ctx"]["expected_tags"].replace(", ", " or "), problem["ctx"]["tag"])
    if problem["type"] == "union_tag_not_found":
        return "missing, and it has no default"
    if problem["type"].startswith(("dataclass", "dict", "model")):
        return f"expected a section with keys, got {problem['input']!r}"
    if kind in _NOUNS:
        return f"expected {_NOUNS[kind]}, got {problem['input']!r}"
    return f"{problem['msg']}, got {problem['input']!r}"


def _other_kind(tags: str, found: object) -> str:
    """`expected 'mlp' or 'conv', got 'mpl'; did you mean 'mlp'?`; of many kinds, only the nearest is named."""
    known = [tag.strip("'") for tag in tags.split(" or ")]
    nearest = did_you_mean(str(found), known)
    if "did you mean" not in nearest:
        return f"expected {tags}, got {found!r}"
    return f"expected {tags if len(known) <= 5 else 'another kind'}, got {found!r}{nearest}"


def _joined(texts: list[str]) -> str:
    """`expected an integer or 'auto', got 'x'`: every type of a union complains of the same value."""
    first, *others = dict.fromkeys(texts)
    got = ", got " + first.rpartition(", got ")[2]
    more = "".join(f" or {text.removeprefix('expected ').removesuffix(got)}" for text in others)
    return first.removesuffix(got) + more + got if others else first


def line_of(raw: Any, at: KeyPath) -> int:
    """The line of the key or item at `at`, or of the nearest section around it that the file has."""
    node, line = raw, 0
    for part in at:
        try:
            keyed = isinstance(node, Mapping)
            line = (node.lc.key if keyed else node.lc.item)(part)[0]
            node = node[part]
        except (KeyError, IndexError, TypeError, AttributeError):
            break
    return int(line) + 1


def _is_missing(problem: Any) -> bool:
    return problem["type"] in ("missing", "missing_argument")


def _is_unknown(problem: Any) -> bool:
    return problem["type"] in ("unexpected_keyword_argument", "extra_forbidden")


def _near(at: KeyPath, raw: Any, root: type) -> bool:
    return "did you mean" in did_you_mean(str(at[-1]), _siblings(at, raw, root))


def _key_path(problem: Any, raw: Any, root: type) -> KeyPath | None:
    """Where in the file. None when the record speaks of a union member other than the one that the file names."""
    at: list[str | int] = []
    node: Any = raw
    kind: Any = root
    loc = problem["loc"]
    for i, part in enumerate(loc):
        members = _members(kind)
        chosen = _chosen(members, node)
        if isinstance(node, Mapping) and members and _is_plain(part) and part not in node:
            return None
        if isinstance(node, list) and (part in {m.__name__ for m in members} or (_is_scalar(part) and _has_list(kind))):
            return None
        if isinstance(node, Mapping) and part in {m.__name__ for m in members}:
            if chosen is None:  # every member complains; the one mistake is the name of the kind
                tags = " or ".join(repr(tag) for m in members for tag in get_args(_field(m, "kind")))
                problem.update(type="union_tag_invalid", ctx={"expected_tags": tags, "tag": node.get("kind")})
                break
            if chosen.__name__ != part:
                return None
            kind = chosen
        elif isinstance(node, Mapping) and (part in node or (i == len(loc) - 1 and not _is_tag(part, members))):
            at.append(part)
            kind, node = _field(chosen or kind, part), node.get(part)
        elif isinstance(node, list) and isinstance(part, int):
            at.append(part)
            kind, node = _field(kind, part), node[part] if part < len(node) else None
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, RangeError):
        at.append(cause.field)
    elif problem["type"].startswith("union_tag"):
        misspelt = difflib.get_close_matches("kind", [*map(str, node or ())], n=1) if "kind" not in (node or ()) else []
        at.append(misspelt[0] if misspelt else "kind")
        if misspelt:
            problem.update(type="unexpected_keyword_argument")
    return tuple(at)


def _siblings(at: KeyPath, raw: Any, root: type) -> list[str]:
    """The keys that are valid beside the one at `at`."""
    kind: Any = root
    node: Any = raw
    for part in at[:-1]:
        kind, node = _field(_chosen(_members(kind), node) or kind, part), node[part]
    members = _members(kind)
    if members and _chosen(members, node) is None:
        return ["kind"]
    kind = _chosen(members, node) or kind
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _field(kind: Any, name: str | int) -> Any:
    if dataclasses.is_dataclass(kind):
        return next((field.type for field in dataclasses.fields(kind) if field.name == name), Any)
    if get_origin(kind) is tuple:
        return get_args(kind)[0]
    return get_args(kind)[1] if get_origin(kind) is dict else Any


def _members(kind: Any) -> list[type]:
    """The configuration classes of a (possibly annotated) union; none for anything else."""
    while hasattr(kind, "__metadata__"):
        kind = kind.__origin__
    if get_origin(kind) is dict:
        return []
    return [member for member in get_args(kind) if dataclasses.is_dataclass(member)]  # type: ignore[misc]


def _is_plain(part: str | int) -> bool:
    """Whether it is how pydantic names a member of a union that is no class of ours."""
    return part in SCALARS or str(part).startswith("tuple[")


def _is_scalar(part: str | int) -> bool:
    return part in SCALARS or str(part).startswith("literal[")


def _has_list(kind: Any) -> bool:
    return any(get_origin(member) is tuple for member in get_args(kind))


def _chosen(members: list[type], node: Any) -> type | None:
    """The member whose `kind` the file names, or the only one there is."""
    if not isinstance(node, Mapping):
        return None
    if len(members) == 1 and _field(members[0], "kind") is Any:
        return members[0]
    return next((member for member in members if _is_tag(node.get("kind"), [member])), None)


def _is_tag(value: object, members: list[type]) -> bool:
    return any(value in get_args(_field(member, "kind")) for member in members)
