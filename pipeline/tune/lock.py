"""dvc.lock as text of one part a stage, so that another entry of one stage costs no more than that entry."""

import io
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter


class Representer(RoundTripRepresenter):
    """For DVC's ordered mappings, which are mappings to it."""


Representer.add_representer(OrderedDict, RoundTripRepresenter.represent_dict)


@dataclass(frozen=True)
class Lock:
    """The content of a dvc.lock.

    Attributes:
        head: everything but the stages: its schema.
        entries: name of a stage -> what it was run with, and what it made.
    """

    head: Mapping[str, Any]
    entries: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Lock":
        """The file; without stages where there is none."""
        content = YAML(typ="safe").load(path) if path.exists() else {}
        return cls({key: value for key, value in content.items() if key != "stages"}, content.get("stages", {}))

    @property
    def made(self) -> dict[str, dict[str, Any]]:
        """Path of each output of a stage -> its entry: hash, size."""
        return {out["path"]: _as_dep(out) for entry in self.entries.values() for out in entry.get("outs", ())}

    def write(self, path: Path, entries: Mapping[str, Any] | None = None) -> None:
        """Write the file, with some entries replaced."""
        parts = self._parts | {name: _part(name, entry) for name, entry in (entries or {}).items()}
        path.write_text(_dump(dict(self.head)) + "stages:\n" + "".join(parts.values()), encoding="utf-8")

    @cached_property
    def _parts(self) -> dict[str, str]:
        return {name: _part(name, entry) for name, entry in self.entries.items()}


def _as_dep(out: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in out.items() if key != "isexec"}


def _part(name: str, entry: object) -> str:
    return "".join(f"  {line}" for line in _dump({name: entry}).splitlines(keepends=True))


def _dump(value: dict[str, Any]) -> str:
    """YAML in the layout of DVC's."""
    out = io.StringIO()
    yaml = YAML()
    yaml.Representer = Representer
    yaml.default_flow_style = False
    yaml.dump(value, out)
    return out.getvalue() if value else ""
