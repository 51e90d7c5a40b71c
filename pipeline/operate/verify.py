"""check every byte of a folder of shards: manifest, index, tars, rows, labels"""

import tarfile
import tempfile
import zlib
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import files, progress
from pipeline.config import Params
from pipeline.data.config import ReadConfig
from pipeline.data.index import INDEX, MANIFEST, Manifest, ShardEntry, parse_manifest, read_manifest, remedy
from pipeline.data.places import LocalFolder, Place, open_place
from pipeline.data.tar import Bytes
from pipeline.errors import UserError

DEFAULT = "data/shards"
SHOWN_ROWS = 5
BLOCK = tarfile.BLOCKSIZE
IMAGES = {"raw": "npy", "png": "png", "jpeg": "jpg"}


def arguments(parser: ArgumentParser) -> None:
    parser.epilog = (
        "Exits with 0 where every byte is as it was written, else with 1 and a line for each file that is not. Shards "
        "at an address are downloaded, one at a time."
    )
    parser.add_argument(
        "shards", metavar="PATH_OR_URI", nargs="?", help=f"a folder of shards; compute.shards, or {DEFAULT}, without it"
    )


def main(params: Params, args: Namespace) -> None:
    print(verify(args.shards or params.compute.shards or DEFAULT, params.compute.read))


def verify(shards: str, read: ReadConfig) -> str:
    """One line that tells what was checked. Nothing that was checked before is taken on trust.

    Raises:
        UserError: a line for each thing that is not as it was written.
    """
    place = open_place(shards, read.remote_timeout_s)
    if isinstance(place, LocalFolder):
        manifest = read_manifest(place.folder)
    else:
        manifest = parse_manifest(place.read(MANIFEST), place.location)
    problems = list(_problems(place, manifest, Path(read.cache).expanduser()))
    if problems:
        raise UserError("\n".join(f"{problem}; {remedy(place.location)}" for problem in problems))
    tars = manifest.shards
    rows, size = sum(tar.rows for tar in tars), _size(sum(tar.bytes for tar in tars))
    return f"{place.location}: {len(tars):,} shards, {rows:,} rows, {size}: every byte is as it was written"


def _problems(place: Place, manifest: Manifest, scratch: Path) -> Iterator[str]:
    named = {entry.name for entry in manifest.shards}
    there = set(place.names()) or {INDEX, *named}  # some web servers list nothing
    for name in sorted(there - named):
        if not _belongs(name, named):
            yield f"{place.location}/{name}: the manifest does not name this file"
    for name in [INDEX, *(entry.name for entry in manifest.shards)]:
        if name not in there:
            yield f"{place.location}/{name}: no such file, and the manifest names it"
    index = None
    if INDEX in there:
        index, problem = _index(place, manifest, scratch)
        yield from problem
    first = 0
    for entry in progress.track(manifest.shards, total=len(manifest.shards), what="verify", unit="shards"):
        if entry.name in there:
            rows = None if index is None else index.slice(first, entry.rows)
            with _local(place, entry.name, scratch) as path:
                yield from (f"{place.location}/{entry.name}: {text}" for text in _shard(path, entry, rows, manifest))
        first += entry.rows


def _belongs(name: str, named: set[str]) -> bool:
    """Whether a file that the manifest does not name is one of those written beside the shards."""
    beside = name.endswith(".idx") and name.removesuffix(".idx") in named
    hidden = any(part.startswith(".") for part in name.split("/"))  # of other tools: .nv-meta, .gitignore
    return name in (MANIFEST, INDEX) or beside or name.endswith(".json") or (hidden and not name.endswith(".tar"))


def _index(place: Place, manifest: Manifest, scratch: Path) -> tuple[pa.Table | None, list[str]]:
    """The index, or what is wrong with it."""
    where = f"{place.location}/{INDEX}"
    with _local(place, INDEX, scratch) as path:
        found = files.sha256(path)
        if found != manifest.index:
            return None, [f"{where}: damaged or exchanged: expected sha256 {manifest.index}, found {found}"]
        table = pq.read_table(path)
    first = 0
    for entry in manifest.shards:
        if table["shard"].slice(first, entry.rows).cast(pa.string()).unique().to_pylist() != [entry.name]:
            return None, [f"{where}: row {first:,}: expected {entry.rows:,} rows of {entry.name}, found others"]
        first += entry.rows
    if len(table) != first:
        return None, [f"{where}: expected {first:,} rows, as in the manifest, found {len(table):,}"]
    return table, []


@contextmanager
def _local(place: Place, name: str, scratch: Path) -> Iterator[Path]:
    """A file of the place on this node; one from elsewhere is fetched anew, and removed after use."""
    if isinstance(place, LocalFolder):
        yield place.folder / name
        return
    with ExitStack() as held:
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            path = Path(held.enter_context(tempfile.TemporaryDirectory(dir=scratch, prefix="verify-"))) / "file"
            place.fetch(name, path)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"compute.cache: {scratch}: {reason}; set it to a folder with room for a shard") from None
        yield path


def _shard(path: Path, entry: ShardEntry, rows: pa.Table | None, manifest: Manifest) -> Iterator[str]:
    """What is wrong with a tar and, where the index is whole, with which of its rows."""
    size = path.stat().st_size
    if size != entry.bytes:
        yield f"expected {entry.bytes:,} bytes, found {size:,}"
    else:
        found = files.sha256(path)
        if found != entry.sha256:
            yield f"damaged or exchanged: expected sha256 {entry.sha256}, found {found}"
    if rows is None:
        return
    data = _mapped(path)
    damaged = [row["key"] for row in _each(rows, "key", "offset", "size", "crc32") if not _intact(data, row)]
    if damaged:
        more = f" and {len(damaged) - SHOWN_ROWS:,} more" if len(damaged) > SHOWN_ROWS else ""
        yield f"images that are not those of the index: {', '.join(damaged[:SHOWN_ROWS])}{more}"
    try:
        _walk(data, rows, manifest)
    except _Unlike as difference:
        yield str(difference)


class _Unlike(Exception):
    """A tar is not what the index tells: where, what was expected, what was found."""


class _Member(NamedTuple):
    name: str
    at: int  # of its content
    content: Bytes


def _mapped(path: Path) -> Bytes:
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)


def _each(rows: pa.Table, *columns: str) -> Iterator[dict[str, Any]]:
    for batch in rows.select(columns).to_batches(max_chunksize=4096):
        yield from batch.to_pylist()


def _intact(data: Bytes, row: dict[str, Any]) -> bool:
    return zlib.crc32(data[row["offset"] : row["offset"] + row["size"]].data) == int(row["crc32"])


def _walk(data: Bytes, rows: pa.Table, manifest: Manifest) -> None:
    """Read the tar from its start: the members of each row in order, then zeros to the end.

    Raises:
        _Unlike: at the first difference.
    """
    image = IMAGES[manifest.encoding]
    kinds = [kind for kind, there in _kinds(manifest) if there]
    columns = ["key", "offset", "size", "label", *(["attributes"] if manifest.attributes else [])]
    at = 0
    for row in _each(rows, *columns):
        for kind in (*kinds, image):
            member = _member(data, at, f"{row['key']}.{kind}")
            size = len(member.content)
            if kind == image and (member.at, size) != (row["offset"], row["size"]):
                raise _Unlike(f"{member.name}: expected {row['size']:,} bytes at {row['offset']:,}, found {size:,}")
            if kind in ("cls", "json"):
                _compare(member.name, member.content.tobytes(), row, manifest.attributes)
            at = member.at + size + -size % BLOCK
            if data[member.at + size : at].any():
                raise _Unlike(f"{member.name}: expected zeros after it, at byte {member.at + size:,}")
    if len(data) - at < 2 * BLOCK or data[at:].any():
        raise _Unlike(f"expected zeros from byte {at:,} to the end, two blocks or more")


def _kinds(manifest: Manifest) -> Sequence[tuple[str, bool]]:
    return (
        ("cls", bool(manifest.classes)),
        ("json", bool(manifest.attributes)),
        ("embedding.npy", bool(manifest.embedding)),
    )


def _member(data: Bytes, at: int, name: str) -> _Member:
    try:
        header = tarfile.TarInfo.frombuf(data[at : at + BLOCK].tobytes(), "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise _Unlike(f"expected the header of {name} at byte {at:,}, found none ({error})") from None
    content = data[at + BLOCK : at + BLOCK + header.size]
    if header.name != name:
        raise _Unlike(f"expected {name} at byte {at:,}, found {header.name!r}")
    if len(content) < header.size:
        raise _Unlike(f"{name}: cut after {len(content):,} of {header.size:,} bytes")
    return _Member(name, at + BLOCK, content)


def _compare(name: str, content: bytes, row: dict[str, Any], attributes: Sequence[str]) -> None:
    """Compare a label or the attributes with the index."""
    expected: Any = row["label"] if name.endswith(".cls") else row["attributes"]
    try:
        found: Any = files.parse_json(content) if name.endswith(".json") else int(content)
        if name.endswith(".json"):
            found = [float(np.float32(found[attribute])) for attribute in attributes]
    except (ValueError, KeyError, TypeError) as error:
        raise _Unlike(f"{name}: not what was written ({type(error).__name__}: {error})") from None
    if found != expected:
        raise _Unlike(f"{name}: expected {expected}, as in the index, found {found}")


def _size(count: int) -> str:
    unit, name = next(((unit, name) for unit, name in ((10**9, "GB"), (10**6, "MB")) if count >= unit), (10**3, "KB"))
    return f"{count / unit:,.0f} {name}"
