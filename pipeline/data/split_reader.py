"""The rows of a split as arrays: labels and attributes from the index, pixels and embeddings from its raw tars."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.config import ReadConfig
from pipeline.data.index import ShardEntry, remedy
from pipeline.data.store import DEFAULT, Store, open_store
from pipeline.data.tar import Bytes, Layout
from pipeline.errors import UserError
from vae_core.batch import Batch

MAP_ATTEMPTS = 3


def open_split(shards: str | Path, split: str, read: ReadConfig = DEFAULT, peer: str | None = None) -> "Split":
    """Open one split of a folder of shards, after the checks that `read.verify` asks for.

    Args:
        shards: a local folder, or an address with "://".
        split: "train", "val" or "test".
        peer: name of the actor that serves the driver's folder to nodes that do not have it.

    Raises:
        UserError: the manifest or a shard is missing, damaged or exchanged, or there is a tar that it does not name.
    """
    store = open_store(shards, read, peer)
    store.check_split(split)
    return Split(store, split, cache_bytes=read.cache_bytes)


class Split:
    """The rows of a split; row i counts through its shards in the order of the manifest. Safe to use from threads.

    A shard is fetched where it is not local, and mapped, when one of its rows is first asked for.

    Attributes:
        name: "train", "val" or "test".
        manifest: of the shards.
        spec: what the models want to know of the data.
        digest: of the manifest, and so of all data.
        shard_rows: rows of each shard.
        generations: of each shard.
        local: the shards need not be fetched.
    """

    def __init__(self, store: Store, name: str, *, cache_bytes: int) -> None:
        self._store = store
        self.name, self.manifest, self.local = name, store.manifest, store.local
        self.spec, self.digest = store.manifest.spec, store.manifest.digest
        entries = store.manifest.of_split(name)
        self.shard_rows = tuple(entry.rows for entry in entries)
        self.generations = tuple(entry.generation for entry in entries)
        self._starts = np.concatenate([[0], np.cumsum(self.shard_rows, dtype=np.int64)])
        self._tars = _Tars(store, entries, cache_bytes)
        self._labels, self._attributes = _columns(store, name)

    def __len__(self) -> int:
        return sum(self.shard_rows)

    @property
    def mapped_shards(self) -> int:
        """How many shards can be in use at once."""
        return self._tars.limit

    def shards_of(self, rows: NDArray[np.int64]) -> list[int]:
        """The shards that hold `rows` [n], each once."""
        return [int(shard) for shard in np.unique(self._shard_of(rows))]

    def fetch(self, shard: int) -> None:
        """Make the rows of a shard ready to be read."""
        self._tars.open(shard)

    def images(self, rows: NDArray[np.int64]) -> Bytes:
        """Images of `rows` [n] in that order, uint8 [n, H, W, C]: one gather a shard, no work a sample."""
        images = self._gather(rows, "images", self.manifest.shape.size)
        return images.view(np.uint8).reshape(len(rows), *self.manifest.shape)

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Labels of `rows` [n], [n]; None where the data have none."""
        return None if self._labels is None else self._labels[rows]

    def attributes(self, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Attributes of `rows` [n], [n, A]; None where the data have none."""
        return None if self._attributes is None else self._attributes[rows]

    def embeddings(self, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Embeddings of `rows` [n], [n, E]; None where the data have none."""
        length = self.manifest.embedding
        if not length:
            return None
        return self._gather(rows, "embeddings", 4 * length).view(np.float32).reshape(len(rows), length)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The source's names of `rows` [n]."""
        ids: list[str] = self._store.index(["id"], self.name)["id"].take(rows).to_pylist()
        return ids

    def gather(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """The fields of a `Batch` that the data give, for `rows` [n]."""
        return {
            "images": torch.from_numpy(self.images(rows)).permute(0, 3, 1, 2),
            "labels": _tensor(self.labels(rows)),
            "attributes": _tensor(self.attributes(rows)),
            "embedding": _tensor(self.embeddings(rows)),
        }

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """`rows` [n] as a global batch of their own, for one rank."""
        count = len(rows)
        return Batch(**self.gather(rows), weight=torch.ones(count), position=torch.arange(count), global_rows=count)

    def _shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _gather(self, rows: NDArray[np.int64], part: str, size: int) -> NDArray[np.void]:
        """One part of `rows` [n], [n] items of `size` bytes."""
        out = np.empty(len(rows), np.dtype((np.void, size)))
        if len(rows) == 0:
            return out
        rising = np.argsort(rows)  # so that the pages of a shard are touched in their order
        wanted = rows[rising]
        shards = self._shard_of(wanted)
        local = wanted - self._starts[shards]
        borders = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(rows)]
        for start, stop in pairwise(borders):
            items = getattr(self._tars.open(int(shards[start])), part)
            out[rising[start:stop]] = items[local[start:stop]]
        return out


class _Parts(NamedTuple):
    """The parts of a shard's samples, [rows] items each, read-only."""

    images: NDArray[np.void]
    embeddings: NDArray[np.void] | None


class _Tars:
    """The shards of a split, each mapped at its first use.

    Attributes:
        limit: shards that stay mapped: all where they are local; else as many as the cache can hold, because a file
            that the cache drops keeps its place on the disk for as long as it is mapped.
    """

    def __init__(self, store: Store, entries: Sequence[ShardEntry], cache_bytes: int) -> None:
        manifest = store.manifest
        self._store, self._entries = store, entries
        self._layout = Layout(manifest.shape, len(manifest.classes), manifest.attributes, manifest.embedding)
        longest = max(self._layout.file_bytes(entry.rows) for entry in entries)
        self.limit = len(entries) if store.local else max(1, cache_bytes // longest)
        self._open: OrderedDict[int, _Parts] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, shard: int) -> _Parts:
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        parts = self._parts(self._map(self._entries[shard]), self._entries[shard].rows)
        with self._lock:
            self._open[shard] = parts
            while len(self._open) > self.limit:
                self._open.popitem(last=False)
        return parts

    def _map(self, entry: ShardEntry) -> Bytes:
        """The bytes of a raw tar, read-only."""
        error: Exception | None = None
        for _ in range(MAP_ATTEMPTS):  # another process may drop the file from the cache before it is mapped
            path = self._store.raw(entry)
            try:
                # Torch closes the file once it is mapped; a numpy memmap keeps it open, and a process may open about a
                # thousand.
                mapped = torch.from_file(str(path), size=self._layout.file_bytes(entry.rows), dtype=torch.uint8).numpy()
            except RuntimeError as failed:
                error = failed
                continue
            mapped.flags.writeable = False
            return mapped
        raise UserError(f"{path}: cannot be read ({error}); {remedy(self._store.location)}")

    def _parts(self, tar: Bytes, rows: int) -> _Parts:
        samples = self._layout.samples(tar, rows)
        embeddings = self._layout.embeddings(samples) if self._store.manifest.embedding else None
        return _Parts(_whole(self._layout.images(samples)), None if embeddings is None else _whole(embeddings))


def _columns(store: Store, split: str) -> tuple[NDArray[np.int64] | None, NDArray[np.float32] | None]:
    """Labels [N] and attributes [N, A] of a split; None where the data have none."""
    manifest = store.manifest
    there = {"label": manifest.classes, "attributes": manifest.attributes}
    wanted = [column for column, names in there.items() if names]
    if not wanted:
        return None, None
    table = store.index(wanted, split)
    labels = table["label"].to_numpy().astype(np.int64, copy=False) if manifest.classes else None
    if labels is not None and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(manifest.classes):
        raise UserError(
            f"{store.location}: the index has labels from {labels.min()} to {labels.max()}, the manifest "
            f"{len(manifest.classes)} classes; {remedy(store.location)}"
        )
    if not manifest.attributes:
        return labels, None
    attributes = table["attributes"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return labels, attributes.reshape(-1, len(manifest.attributes)).astype(np.float32, copy=False)


def _whole(items: NDArray[Any]) -> NDArray[np.void]:
    """[rows, n] -> [rows] of items as long as a row, so that numpy copies each in one piece."""
    return items.view(np.dtype((np.void, items.shape[1] * items.itemsize)))[:, 0]


def _tensor(array: NDArray[Any] | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)
