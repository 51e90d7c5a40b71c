"""Whether a schedule is one that Kubernetes understands."""

import re

_FIELDS = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    ("day of week", 0, 6, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)
_NAMED = {"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}
_EVERY = re.compile(r"@every (\d+[hms])+")
_PART = re.compile(r"(\*|\?|(\w+)(?:-(\w+))?)(?:/(\d+))?")


def cron_mistake(schedule: str) -> str | None:
    """What is wrong with it, and what was expected; None: nothing."""
    if schedule in _NAMED or _EVERY.fullmatch(schedule):
        return None
    if "TZ=" in schedule:
        return f"{schedule!r}: a time zone belongs in timeZone"
    parts = schedule.split()
    if len(parts) != len(_FIELDS):
        return f"{schedule!r}: expected five fields, such as 30 2 * * * (every day at 02:30), got {len(parts)}"
    for text, (name, low, high, words) in zip(parts, _FIELDS, strict=True):
        for part in text.split(","):
            if not _is_valid(part, low, high, words):
                return f"{schedule!r}: {name}: expected {low} to {high}, a range, a list or *, got {part!r}"
    return None


def _is_valid(part: str, low: int, high: int, words: tuple[str, ...]) -> bool:
    found = _PART.fullmatch(part.lower())
    if not found or found[4] == "0":
        return False
    numbers = [_number(text, low, words) for text in found.group(2, 3) if text is not None]
    return all(n is not None and low <= n <= high for n in numbers) and numbers == sorted(numbers, key=lambda n: n or 0)


def _number(text: str, low: int, words: tuple[str, ...]) -> int | None:
    if text in words:
        return words.index(text) + low
    return int(text) if text.isdecimal() else None
