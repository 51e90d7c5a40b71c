"""What was measured, as a table for people and as JSON."""

import importlib.metadata
import os
import platform
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.data.measure import CORES

NAME_WIDTH, TEXT_WIDTH = 36, 110


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table; a figure that was not measured is None, and `note` says why."""

    name: str
    figures: dict[str, float | None] = field(default_factory=dict)
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


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": len(CORES),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    packages = ("numpy", "torch", "pyarrow", "pillow", "webdataset", "mosaicml-streaming")
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


def as_json(tables: Sequence[Table], targets: Sequence[Target], facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": machine(),
        "versions": versions(),
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


def _rounded(figures: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else _short(value) for name, value in figures.items()}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
