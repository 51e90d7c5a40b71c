"""A folder of shards, wherever it is, as verified local files."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import files, progress
from pipeline.data.config import ReadConfig
from pipeline.data.index import INDEX, MANIFEST, Manifest, ShardEntry, parse_manifest, read_manifest, remedy
from pipeline.data.node_cache import Content, Damaged, NodeCache
from pipeline.data.places import LocalFolder, Place, open_place
from pipeline.data.tar import Layout
from pipeline.data.verified import Verified
from pipeline.errors import UserError

DEFAULT = ReadConfig()
SHOWN = 10  # problems in one message
ELSEWHERE = ".vae-pipeline"  # below the home, on nodes of a cluster that do not have the driver's folder
LONG_BYTES = 4 * 1024**3  # checking as much takes seconds
_NUMBERS = ("label", "offset", "size")  # columns of the index


def open_store(shards: str | Path, read: ReadConfig = DEFAULT, peer: str | None = None) -> "Store":
    """Open a folder of shards; only its manifest is read.

    Args:
        shards: a local folder, or an address with "://" that fsspec opens.
        peer: name of the Ray actor that serves the driver's folder to nodes that do not have it.

    Raises:
        UserError: there is no manifest, it is not as it was written, or the place does not answer.
    """
    place = open_place(shards, read.remote_timeout_s, peer)
    if isinstance(place, LocalFolder):
        return Store(place, read_manifest(place.folder), read)
    return Store(place, parse_manifest(place.read(MANIFEST), place.location), read)


def cache_folder(read: ReadConfig) -> Path:
    """The cache of this node, which has it below its home where it does not have the driver's folder."""
    path = Path(read.cache).expanduser()
    if read.cache_below is None or path.is_absolute():
        return path.absolute()
    return (Path(read.cache_below) if os.access(read.cache_below, os.W_OK) else Path.home() / ELSEWHERE) / path


class Store:
    """The files of a folder of shards. May be used by several threads.

    Attributes:
        manifest: of the folder.
        location: of the folder, for messages.
        local: the tars lie in a folder of this node and are raw, so their paths cost nothing.
    """

    def __init__(self, place: Place, manifest: Manifest, read: ReadConfig) -> None:
        cache = cache_folder(read)
        self.manifest, self.location = manifest, place.location
        self.local = isinstance(place, LocalFolder) and manifest.encoding == "raw"
        self._place = place
        self._verified = Verified(cache / "verified", read.verify)
        self._cache = NodeCache(cache, read.cache_bytes, self._verified)

    def check_split(self, split: str) -> None:
        """Check the index and every shard of a split that lies on this node; those elsewhere are checked as they come.

        Raises:
            UserError: there is no such split; or a line for each file that is missing, damaged, exchanged, or not named
                by the manifest.
        """
        entries = self.manifest.of_split(split)
        if not entries:
            raise UserError(f"{self.location}: no split {split!r}; there are {', '.join(self.manifest.counts)}")
        if isinstance(self._place, LocalFolder):
            with self._verified.alone():
                folder = self._place.folder
                raise_problems([*self._unnamed(folder, split), *self._damaged(folder, entries)], self.location)

    def tar(self, entry: ShardEntry) -> Path:
        """Local path of a shard as it was written, verified.

        Raises:
            UserError: it is missing or damaged, the place does not answer, or the cache cannot be written.
        """
        return self._file(entry.name, f"{entry.sha256}.tar", Content(entry.bytes, entry.sha256))

    def raw(self, entry: ShardEntry) -> Path:
        """Local path of a shard in the raw layout, verified: itself, or a copy that is decoded once on a node.

        Raises:
            UserError: as for `tar`.
        """
        if self.manifest.encoding == "raw":
            return self.tar(entry)
        return self._cached(entry.name, f"{entry.sha256}.raw.tar", lambda to: self._transcode(entry, to), None)

    def index(self, columns: Sequence[str], split: str | None = None) -> pa.Table:
        """Columns of index.parquet, in the order of the shards.

        Args:
            split: rows of this split; None: all.

        Raises:
            UserError: as for `tar`.
        """
        return self._index_rows(columns, None if split is None else ("split", split))

    def _index_rows(self, columns: Sequence[str], where: tuple[str, str] | None) -> pa.Table:
        """Columns of the rows that have a value in a column."""
        path = self._file(INDEX, f"{self.manifest.index}.parquet", self._sealed_index)
        filters = None if where is None else [(where[0], "==", where[1])]
        try:
            table = pq.read_table(path, columns=list(columns), filters=filters)
            problem = self._unlike(table, columns, where)
        except (pa.ArrowException, OSError, UnicodeError, KeyError) as error:
            problem = f"cannot be read as Parquet ({(str(error).splitlines() or [type(error).__name__])[0]})"
        if problem is not None:
            raise UserError(f"{path}: {problem}; {remedy(self.location)}")
        return table

    def _unlike(self, table: pa.Table, columns: Sequence[str], where: tuple[str, str] | None) -> str | None:
        """How rows of the index contradict the manifest; None: they do not."""
        wanted = [entry for entry in self.manifest.shards if where is None or where[1] in (entry.split, entry.name)]
        rows = sum(entry.rows for entry in wanted)
        if len(table) != rows:
            return f"expected {rows:,} rows of {where[1] if where else 'all splits'}, found {len(table):,}"
        for name in columns:
            kind = table.schema.field(name).type
            if name in _NUMBERS and not (pa.types.is_integer(kind) and table[name].null_count == 0):
                return f"column {name!r}: expected whole numbers in each row, found {kind}"
            vector = pa.list_(pa.float32(), len(self.manifest.attributes))
            if name == "attributes" and (kind != vector or table[name].null_count):
                return f"column {name!r}: expected {vector} in each row, found {kind}"
        return None

    @property
    def _sealed_index(self) -> Content:
        return Content(None, self.manifest.index)  # the manifest does not tell its length

    def _file(self, name: str, cached: str, content: Content) -> Path:
        """A file of the folder itself where that is local, else its copy in the cache."""
        if not isinstance(self._place, LocalFolder):
            return self._cached(name, cached, lambda to: self._place.fetch(name, to), content)
        path = self._place.folder / name
        problem = self._verified.problem(path, *content)
        if problem is not None:
            raise UserError(f"{problem}; {remedy(self.location)}")
        return path

    def _cached(self, name: str, cached: str, make: Callable[[Path], None], content: Content | None) -> Path:
        try:
            return self._cache.get(cached, make, content)
        except Damaged as error:
            raise UserError(f"{self.location}/{name}: damaged or exchanged: {error}; {remedy(self.location)}") from None

    def _transcode(self, entry: ShardEntry, to: Path) -> None:
        """Write the raw copy of an encoded shard. One from elsewhere is not kept beside its copy."""
        from pipeline.data.encoded import transcode

        m = self.manifest
        layout = Layout(m.shape, len(m.classes), m.attributes, m.embedding)
        rows = self._index_rows(["offset", "size"], ("shard", entry.name))
        places = rows["offset"].to_numpy(), rows["size"].to_numpy()
        if isinstance(self._place, LocalFolder):
            transcode(self.tar(entry), layout, *places, to)
            return
        source = to.with_name(to.name.removesuffix(".tmp") + ".source.tmp")
        try:
            self._fetch(entry, source)
            transcode(source, layout, *places, to)
        finally:
            source.unlink(missing_ok=True)

    def _fetch(self, entry: ShardEntry, to: Path) -> None:
        for _ in range(2):
            self._place.fetch(entry.name, to)
            found = files.sha256(to)
            if found == entry.sha256:
                return
        raise Damaged(f"expected sha256 {entry.sha256}, found {found}, twice")

    def _unnamed(self, folder: Path, split: str) -> Iterator[str]:
        named = {folder / entry.name for entry in self.manifest.shards}
        for path in sorted((folder / split).glob("*.tar")):
            if path not in named:
                yield f"{path}: the manifest does not name this shard"

    def _damaged(self, folder: Path, entries: Sequence[ShardEntry]) -> Iterator[str]:
        """What is wrong with the index and with `entries`, read by several threads."""
        expected = [(folder / entry.name, Content(entry.bytes, entry.sha256)) for entry in entries]
        expected.append((folder / INDEX, self._sealed_index))
        unread = sum(content.bytes or 0 for path, content in expected if not self._verified.known(path, content.sha256))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found: Iterable[str | None] = pool.map(lambda file: self._verified.problem(file[0], *file[1]), expected)
            if unread >= LONG_BYTES:
                found = progress.track(found, total=len(expected), what="verify", unit="shards")
            yield from filter(None, found)


def raise_problems(problems: Sequence[str], location: str) -> None:
    """Raise a UserError with a line for each problem, of which the first ones are shown, and the remedy."""
    if not problems:
        return
    lines = [f"{problem}; {remedy(location)}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(
            f"{location}: and {len(problems) - SHOWN:,} more; `python -m pipeline verify {location}` lists them"
        )
    raise UserError("\n".join(lines))
