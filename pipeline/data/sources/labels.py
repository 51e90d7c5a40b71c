"""Labels: the names of the classes, and the place of each label among them."""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pipeline.errors import UserError

MAX_CLASSES = 100_000
MANY_CLASSES = 1000  # more than these must be shared by rows
AS_ATTRIBUTE = "name it under columns.attributes instead"
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", re.ASCII | re.IGNORECASE)


def nfc(name: str) -> str:
    """One spelling of a name: a letter and its accent can be one character or two."""
    return unicodedata.normalize("NFC", name)


def class_names(
    counts: Mapping[Any, int], given: tuple[str, ...] | None, where: str, instead: str = AS_ATTRIBUTE
) -> tuple[str, ...]:
    """Names of the classes: as `given`, else from the labels: texts in NFC and in order, or "0" to the largest number.

    Args:
        counts: each distinct label -> how many rows have it.
        where: what holds the labels, for the message.
        instead: remedy where they are measurements.

    Raises:
        UserError: there are too many, nearly every row has its own, they are measurements, numbers and texts are mixed,
            or the largest number cannot be a class.
    """
    if given is not None:
        return given
    values = [value for value in counts if value is not None]
    if not values:
        return ()
    if len(values) > MAX_CLASSES:
        raise UserError(
            f"{where}: expected at most {MAX_CLASSES:,} classes, found more distinct labels. Name what holds the "
            "classes, or set it to null"
        )
    check_whole(values, where, instead)
    check_shared(counts, where, "Name what holds the classes, or set it to null")
    if all(isinstance(value, str) for value in values):
        return tuple(sorted({nfc(value) for value in values}))
    numbers = [_whole(value) for value in values]
    largest = max((number for number in numbers if number is not None), default=-1)
    if any(isinstance(value, str) for value in values) or not 0 <= largest < MAX_CLASSES:
        raise UserError(
            f"{where}: expected class names, or whole numbers from 0 to below {MAX_CLASSES:,}; found such as "
            f"{', '.join(repr(value) for value in sorted(values, key=repr)[:4])}. Correct the labels, or name the "
            "classes in data.classes"
        )
    return tuple(str(number) for number in range(largest + 1))


def check_whole(labels: Iterable[Any], where: str, instead: str = AS_ATTRIBUTE) -> None:
    """Refuse measurements.

    Raises:
        UserError: all labels are numbers, or the text of one, and not all of them are whole.
    """
    numbers = {value: _number(value) for value in labels if value is not None}
    known = [number for number in numbers.values() if number is not None]
    if len(known) == len(numbers) and not all(number.is_integer() or math.isinf(number) for number in known):
        found = min(str(value) for value, number in numbers.items() if number is not None and not number.is_integer())
        raise UserError(f"{where}: expected class names or whole numbers, found {found[:80]}; {instead}")


def check_shared(counts: Mapping[Any, int], where: str, remedy: str) -> None:
    """Refuse what names a row rather than a class.

    Raises:
        UserError: there are many labels, and more than half of the rows have one of their own.
    """
    alone = sum(count == 1 for count in counts.values())
    if len(counts) > MANY_CLASSES and 2 * alone > sum(counts.values()):
        raise UserError(
            f"{where}: expected classes, found {len(counts):,} labels: nearly every row has a label of its own. "
            f"{remedy}; if they are classes all the same, list them in data.classes"
        )


class LabelCodes(NamedTuple):
    """Labels as numbers.

    Attributes:
        labels: int64 or None a row; whether a number is in range is for the quarantine to say.
        errors: "label_unknown" or None a row.
        details: of the errors.
    """

    labels: list[int | None]
    errors: list[str | None]
    details: list[str | None]


def encode_labels(values: Iterable[Any], classes: tuple[str, ...]) -> LabelCodes:
    """Numbers stay; a text becomes the place of the class of that name, compared in NFC; null stays null."""
    code = {nfc(name): number for number, name in enumerate(classes)}
    out = LabelCodes([], [], [])
    for value in values:
        label = code.get(nfc(value)) if isinstance(value, str) else _whole(value)
        unknown = label is None and value is not None and value == value  # NaN is how tables write a missing number
        out.labels.append(label)
        out.errors.append("label_unknown" if unknown else None)
        out.details.append(f"expected a class, found {str(value)[:80]!r}" if unknown else None)
    return out


def _whole(value: Any) -> int | None:
    if value is None or isinstance(value, str):
        return None
    try:
        number = int(value)
    except (ValueError, OverflowError, TypeError):
        return None
    return number if number == value and abs(number) < 2**62 else None


def _number(value: Any) -> float | None:
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        return None
    try:
        return float(value)
    except OverflowError:  # of an integer, so it is whole
        return math.inf
