"""What all configuration classes share. Plain data: no YAML, no pydantic, no torch."""

from typing import ClassVar


class RangeError(ValueError):
    """A value of the right type but outside what the field allows."""

    def __init__(self, field: str, expected: str, got: object) -> None:
        super().__init__(f"{field}: expected {expected}, got {got!r}")
        self.field, self.expected, self.got = field, expected, got


class Strict:
    """Base of all configuration classes: pydantic, where it reads them, must refuse unknown keys, wrong types, NaN."""

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


def check(config: object, field: str, valid: bool, expected: str) -> None:
    """Raise RangeError for `field` of `config` unless `valid`."""
    if not valid:
        raise RangeError(field, expected, getattr(config, field))


def check_at_least(config: object, least: int, *fields: str) -> None:
    """Raise RangeError for the first of `fields` below `least`."""
    for field in fields:
        check(config, field, getattr(config, field) >= least, f"a number of at least {least}")
