"""params.yaml as plain values: what YAML says, of bounded size, and without secrets."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.addresses import has_credentials
from pipeline.config_errors import KeyPath, line_of
from pipeline.errors import UserError

MOST_VALUES, MOST_DEEP = 100_000, 50  # with every alias written out
MOST_BITS = 256  # of an integer
MOST_LETTERS, MOST_BRACKETS = 2**20, 500
REMEDY = (
    "expected an address without user or password, which Git would keep; give them in the environment "
    "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) or in ~/.aws, and renew what was committed"
)


def read_params(path: Path, sections: Iterable[str]) -> Mapping[str, Any]:
    """The values of the file, which knows its lines. No tag of YAML makes an object of it.

    Args:
        sections: that there should be, for messages.

    Raises:
        UserError: it is missing, is not YAML, or would become too large.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > MOST_LETTERS or _brackets(text) > MOST_BRACKETS:  # of which each would cost time
            raise UserError(
                f"{path}: expected at most {MOST_LETTERS:,} letters and {MOST_BRACKETS} brackets in another"
            )
        raw = YAML(typ="rt").load(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's folder, or restore it with Git") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = (error.problem or "expected YAML").strip().splitlines()[0]
        raise UserError(f"{path}:{line}: not valid YAML: {problem}") from None
    except YAMLError as error:  # a character that no YAML file may hold
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid here: nested more than {MOST_DEEP} deep") from None
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:  # of a number or date
        raise UserError(f"{path}: not valid YAML: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    if not isinstance(raw, Mapping):
        raise UserError(f"{path}:1: expected the sections {', '.join(sections)}; found none")
    _check_size(path, raw)
    return raw


def with_credentials(node: object, at: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Where there is an address with a user or password, and what to do: the file is in Git, and stays there."""
    if isinstance(node, str) and has_credentials(node):
        yield at, REMEDY
    inside = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, child in inside:
        yield from with_credentials(child, (*at, key))


def _brackets(text: str) -> int:
    """How many are open at once, at most; those in words count too."""
    steps = (1 if letter in "[{" else -1 for letter in text if letter in "[]{}")
    return max(itertools.accumulate(steps), default=0)


def _check_size(path: Path, raw: object) -> None:
    """Raises UserError: with each alias (*) written out it would fill the memory, or JSON has no such key or number."""
    waiting: list[tuple[Any, int]] = [(raw, 0)]
    count = 0
    while waiting:
        node, depth = waiting.pop()
        keyed = isinstance(node, Mapping)
        inside = list(node.values()) if keyed else list(node) if isinstance(node, list | tuple | set) else []
        count += len(inside)
        if depth > MOST_DEEP or count > MOST_VALUES:
            raise UserError(
                f"{path}: expected at most {MOST_VALUES:,} values, at most {MOST_DEEP} deep, found more; write out the "
                "aliases (*) that repeat or contain themselves"
            )
        if isinstance(node, int) and node.bit_length() > MOST_BITS:
            raise UserError(
                f"{path}: expected integers of at most {MOST_BITS} bits, found one of {node.bit_length():,}"
            )
        if keyed and not all(isinstance(key, str | int | float | None) for key in node):
            raise UserError(f"{path}:{line_of(node, ())}: expected text as keys, found a list or section as one")
        waiting.extend((child, depth + 1) for child in inside)
