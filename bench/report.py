"""What was measured, as tables for people and as JSON, with the machine and the versions it was measured on."""

import importlib.metadata
import os
import platform
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

NAME_WIDTH, TEXT_WIDTH = 36, 110
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table; a figure that was not measured is None, and `note` says why."""

    name: str
    figures: Mapping[str, float | None] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    protocol: str
    rows: Sequence[Row]
    formats: dict[str, str]

    def text(self) -> str:
        head = f"{'':<{NAME_WIDTH}}" + "".join(f"{column:>16}" for column in self.formats)
        protocol = textwrap.wrap(self.protocol, TEXT_WIDTH, initial_indent="  ", subsequent_indent="  ")
        lines = [self.title, *protocol, head.rstrip()]
        for row in self.rows:
            cells = [_cell(row.figures.get(column), shape) for column, shape in self.formats.items()]
            lines.append(
                f"{'  ' + row.name:<{NAME_WIDTH}}{''.join(f'{cell:>16}' for cell in cells)}  {row.note}".rstrip()
            )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Target:
    """What the project asks of itself."""

    what: str
    at_least: float | None
    found: float
    below: float | None = None

    @property
    def met(self) -> bool:
        return (self.at_least is None or self.found >= self.at_least) and (
            self.below is None or self.found < self.below
        )

    def text(self) -> str:
        wanted = f">= {self.at_least:g}" if self.at_least is not None else f"< {self.below:g}"
        return f"  {'met   ' if self.met else 'MISSED'}  {self.what:<62}{wanted:>8}{self.found:>12.3g}"


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def show(tables: Sequence[Table], targets: Sequence[Target], packages: Sequence[str]) -> None:
    """Print the machine, the versions, the tables, and which targets are met."""
    facts = ", ".join(f"{name} {value}" for name, value in {**machine(), **versions(*packages)}.items())
    print("\n\n".join([facts, *(table.text() for table in tables), "Targets"]))
    print("\n".join(target.text() for target in targets))


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu("model name") or platform.processor() or platform.machine(),
        "cores": CORES,
        "bf16 units": bf16_units() or "none",
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def bf16_units() -> str:
    """The processor's flags for arithmetic in bfloat16; without one torch computes in float32 and converts."""
    return ", ".join(name for name in _cpu("flags").split() if name.endswith("_bf16"))


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of these packages; "not installed" where one is not."""
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


def as_json(tables: Sequence[Table], targets: Sequence[Target], facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": machine(),
        **facts,
        "tables": [
            {
                "title": table.title,
                "protocol": table.protocol,
                "rows": [{"name": row.name, **_rounded(row.figures), "note": row.note} for row in table.rows],
            }
            for table in tables
        ],
        "targets": [{**asdict(target), "found": _short(target.found), "met": target.met} for target in targets],
    }


def _cell(value: float | None, shape: str) -> str:
    return "-" if value is None else format(value, shape)


def _rounded(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else _short(value) for name, value in figures.items()}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _cpu(field: str) -> str:
    """A line of /proc/cpuinfo; empty where it is not there."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(field):
            return line.partition(":")[2].strip()
    return ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
