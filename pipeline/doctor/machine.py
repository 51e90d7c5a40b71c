"""This machine: Python, packages, memory, shared memory, disks. What does not depend on where the project runs."""

import os
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from pipeline.doctor.finding import Finding, broken, ok, warning
from pipeline.runtime import OBJECT_STORE_BYTES

GIB = 1024**3
FULL_BYTES, TIGHT_BYTES = GIB // 10, 2 * GIB
MEMORY_BYTES = 2 * GIB
PYTHONS = ((3, 11), (3, 14))  # from, and below
SHARED_MEMORY = Path("/dev/shm")


def python() -> Iterator[Finding]:
    version = platform.python_version()
    if PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        yield ok("Python", version)
    else:
        yield broken(
            "Python",
            f"{version}, and the project needs 3.11 to 3.13",
            "make .venv with another: `make clean`, `make PYTHON=python3.11`",
        )


def wanted_packages(root: Path) -> dict[str, str | None]:
    """Each package that pyproject.toml names -> its version in constraints.txt."""
    named = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_plain(name): version for name, _, version in (line.partition("==") for line in lines) if version}
    names = [re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0] for requirement in named]
    return {name: pinned.get(_plain(name)) for name in names}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def packages(wanted: Mapping[str, str | None]) -> Iterator[Finding]:
    """Those missing, those of another version, and how many are right."""
    right = 0
    for name, version in wanted.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield broken(
                f"package {name}", "not installed", "`make repro` installs it, or `pip install -c constraints.txt -e .`"
            )
            continue
        if version is not None and found.partition("+")[0] != version:
            yield warning(
                f"package {name}",
                f"{found} is installed, constraints.txt has {version}",
                "`pip install -c constraints.txt -e .`, or figures may differ from those published",
            )
        else:
            right += 1
    yield ok("packages", f"{right} of {len(wanted)} as in constraints.txt")


def memory() -> Iterator[Finding]:
    import psutil

    cores, found = len(os.sched_getaffinity(0)), psutil.virtual_memory()
    told = f"{cores} cores, {found.available / GIB:.1f} of {found.total / GIB:.1f} GiB of memory available"
    if found.available < MEMORY_BYTES:
        yield warning("memory", told, "end other programs, or set compute.max_rows to work in smaller parts")
    else:
        yield ok("memory", told)


def shared_memory(folder: Path = SHARED_MEMORY, least: int = OBJECT_STORE_BYTES) -> Iterator[Finding]:
    """Room for Ray's object store."""
    what = str(folder)
    if not folder.is_dir():
        yield warning(what, "not there; Ray puts its objects on a disk", "mount a tmpfs there")
        return
    room = shutil.disk_usage(folder)
    told = f"{room.free / GIB:.2f} of {room.total / GIB:.2f} GiB free"
    if room.free < least:
        yield warning(
            what,
            f"{told}, and Ray wants {least / GIB:.2f}; it would put its objects on a disk",
            "in a container: `--shm-size=1g`",
        )
    else:
        yield ok(what, told)


def disk(what: str, folder: Path) -> Iterator[Finding]:
    """Room on the disk of a folder that need not be there yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    told, name = f"{free / GIB:.1f} GiB free", f"disk of {what} ({folder})"
    remedy = "make room: `python -m pipeline runs rm --finished`, `dvc gc --workspace`"
    if free < FULL_BYTES:
        yield broken(name, told, remedy)
    elif free < TIGHT_BYTES:
        yield warning(name, told, remedy)
    else:
        yield ok(name, told)
