"""What one trial spent its time on."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def phases(marks: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each part of one of plain Ray Tune's trials, from the creation of its process to the end."""
    ends, reports = marks["ends"], marks["reports"]
    return {
        "process, imports": marks["entered"] - marks["created"],
        "opening, first epoch": ends[0] - marks["entered"],
        "other epochs": ends[-1] - ends[0] - sum(reports[:-1]),
        "reports": sum(reports),
        "end": marks["done"] - ends[-1] - reports[-1],
    }


def medians(trials: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of each part over the trials."""
    each = [phases(marks) for marks in trials]
    return {name: statistics.median(one[name] for one in each) for name in each[0]}


def of_ours(storage: Path) -> float:
    """Median seconds of our trials: in its folder each says first what it is, and last that it is finished."""
    spans = [
        (folder / "finished.json").stat().st_mtime - (folder / "run.json").stat().st_mtime
        for folder in storage.glob("*-trial-*")
    ]
    return statistics.median(spans)
