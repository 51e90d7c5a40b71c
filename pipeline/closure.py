"""Which files of this project a module imports, directly or not: what a stage depends on, and what a run's code is."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("pipeline", "vae_core")
TEMPLATES = (".html", ".css", ".md")


@cache
def closure(module: str) -> tuple[str, ...]:
    """The project files that importing `module` can read, as sorted paths relative to the project.

    Imports inside functions count: they are run sooner or later. A package's `__init__.py` counts with its modules, and
    so do its templates and style sheets.
    """
    found: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        for file in _files(name):
            path = file.relative_to(ROOT).as_posix()
            if path not in found:
                found |= {path, *_templates(file.parent)}
                todo += _imports(file)
    return tuple(sorted(found))


def code_fingerprint(module: str) -> str:
    """16 hex digits of the content of every file in the closure of `module`."""
    digest = hashlib.sha256()
    for path in closure(module):
        digest.update(f"{path}\0".encode() + (ROOT / path).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _files(module: str) -> Iterator[Path]:
    """The file of a module and the `__init__.py` of each package around it; none for a name that is no module."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        base = ROOT.joinpath(*parts[:depth])
        file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if file.is_file():
            yield file


def _templates(package: Path) -> set[str]:
    return {file.relative_to(ROOT).as_posix() for file in package.iterdir() if file.suffix in TEMPLATES}


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.split(".")[0] in PACKAGES)
