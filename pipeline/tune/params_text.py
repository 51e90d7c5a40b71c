"""Other values in the text of params.yaml; everything else in it stays as it is, to the byte."""

import json
import re
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node

from pipeline.errors import UserError
from pipeline.tune.config import Scalar

PLAIN = re.compile(r"[\w.+-]+")  # what needs no quotes, wherever it is


def with_values(text: str, values: Mapping[str, Scalar]) -> str:
    """`text` with the values of some keys, such as `train.epochs`, replaced; a key that is not there is added.

    Raises:
        UserError: another section shares one of them, by an alias.
    """
    expected = _plain(text)
    for key, value in values.items():
        text = _replace(text, key.split("."), value)
        _set(expected, key.split("."), value)
    if _plain(text) != expected:
        raise UserError(f"params.yaml: other sections share one of {', '.join(values)} by an alias; write them out")
    return text


def _replace(text: str, keys: list[str], value: Scalar) -> str:
    node = YAML().compose(text)
    for depth, key in enumerate(keys):
        found = _child(node, key)
        if found is None:
            return _insert(text, node, keys[depth:], value)
        node = found
    return text[: node.start_mark.index] + _scalar(value) + text[node.end_mark.index :]


def _child(node: Node, key: str) -> Node | None:
    return next((value for name, value in node.value if name.value == key), None)


def _insert(text: str, node: MappingNode, keys: list[str], value: Scalar) -> str:
    """`text` with a key of the mapping `node` more, before its others."""
    entry = f"{keys[-1]}: {_scalar(value)}"
    for key in reversed(keys[:-1]):
        entry = f"{key}: {{{entry}}}"
    if not node.value:
        return text[: node.start_mark.index] + f"{{{entry}}}" + text[node.end_mark.index :]
    first = node.value[0][0].start_mark
    between = ", " if node.flow_style else "\n" + " " * first.column
    return text[: first.index] + entry + between + text[first.index :]


def _scalar(value: Scalar) -> str:
    """As YAML 1.2 reads it: a number with an exponent needs its decimal point."""
    text = json.dumps(value) if not isinstance(value, str) else value
    if isinstance(value, float) and "." not in text:
        text = text.replace("e", ".0e")
    return text if PLAIN.fullmatch(text) and YAML(typ="safe").load(text) == value else json.dumps(value)


def _set(content: Any, keys: list[str], value: Scalar) -> None:
    for part in keys[:-1]:
        content = content.setdefault(part, {})
    content[keys[-1]] = value


def _plain(text: str) -> Any:
    """The content, nothing in it shared."""
    return json.loads(json.dumps(YAML(typ="safe").load(text), default=str))
