"""Verified shards as arrays, and their batches in an order that does not depend on the number of ranks."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import files
from pipeline.data.index import Manifest, ShardEntry, read_manifest, remedy
from pipeline.data.order import ORDER_VERSION, order, rank_positions
from pipeline.data.tar import Bytes, Layout
from pipeline.errors import UserError
from vae_core.batch import Batch


def open_split(shards: Path, split: str) -> "Split":
    """Open one split of a folder of shards, after reading and checking every byte of it.

    Args:
        split: "train", "val" or "test".

    Raises:
        UserError: the manifest or a shard is missing, damaged or exchanged, or there is a tar that it does not name.
    """
    manifest = read_manifest(shards)
    entries = manifest.of_split(split)
    if not entries:
        raise UserError(f"{shards}: no split {split!r}; there are {', '.join(manifest.counts)}")
    named = {shards / entry.name for entry in entries}
    for path in sorted((shards / split).glob("*.tar")):
        if path not in named:
            raise UserError(f"{path}: the manifest does not name this shard; {remedy(shards)}")
    layout = Layout(manifest.shape, len(manifest.classes))
    with ThreadPoolExecutor() as pool:
        for problem in pool.map(lambda entry: _problem(shards / entry.name, entry, layout), entries):
            if problem:
                raise UserError(f"{problem}; {remedy(shards)}")
    return Split(shards, split, manifest)


class Split:
    """The rows of a split, mapped from its tars; row i counts through the shards in order.

    Attributes:
        name: "train", "val" or "test".
        manifest: of the folder of shards.
        spec: shape of an image and number of classes, as the models want it.
        digest: of the manifest, and so of all data.
        shard_rows: rows of each shard.
    """

    def __init__(self, shards: Path, split: str, manifest: Manifest) -> None:
        self.name, self.manifest, self.digest = split, manifest, manifest.digest
        self.spec = manifest.spec
        self.shard_rows = tuple(entry.rows for entry in manifest.of_split(split))
        layout = Layout(manifest.shape, len(manifest.classes))
        samples = [_map(shards / entry.name, entry, layout) for entry in manifest.of_split(split)]
        self._starts = np.concatenate([[0], np.cumsum(self.shard_rows)])
        self._images = [_whole(layout.images(shard)) for shard in samples]
        self._labels = np.concatenate([layout.labels(shard) for shard in samples]) if layout.classes else None

    def __len__(self) -> int:
        return sum(self.shard_rows)

    def images(self, rows: NDArray[np.int64]) -> Bytes:
        """Images of `rows` [n] in that order, uint8 [n, H, W, C]: one gather a shard, no work a sample."""
        out = np.empty(len(rows), self._images[0].dtype)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of).tolist():
            here = np.flatnonzero(shard_of == shard)
            out[here] = self._images[shard][rows[here] - self._starts[shard]]
        return out.view(np.uint8).reshape(len(rows), *self.manifest.shape)

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Labels of `rows` [n], [n]; None where the data have none."""
        return None if self._labels is None else self._labels[rows]

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """`rows` [n] as a global batch of their own, for one rank."""
        labels = self.labels(rows)
        return Batch(
            images=torch.from_numpy(np.ascontiguousarray(self.images(rows).transpose(0, 3, 1, 2))),
            labels=None if labels is None else torch.from_numpy(labels),
            weight=torch.ones(len(rows)),
            position=torch.arange(len(rows)),
            global_rows=len(rows),
        )


class Loader:
    """One rank's batches of a split.

    All ranks make the same number of steps, and every row of the split is in exactly one batch of one rank an epoch.
    What a batch holds over all ranks depends on seed, epoch and step, not on `world`.

    Attributes:
        split: what is read.
        next_epoch: epoch of the batch after the one given out last; after `load_state_dict`, where to go on.
        next_step: its step within that epoch.
    """

    def __init__(
        self, split: Split, seed: int, window_shards: int, global_batch_size: int, rank: int = 0, world: int = 1
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank: expected 0 to {world - 1}, got {rank}")
        self.split = split
        self.next_epoch = self.next_step = 0
        self._seed, self._window_shards, self._batch_size = seed, window_shards, global_batch_size
        self._rank, self._world = rank, world

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.split) // self._batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch in its shuffled order, from `first_step` on."""
        rows = order(self.split.shard_rows, seed=self._seed, epoch=epoch, window_shards=self._window_shards)
        for step in range(first_step, self.steps_per_epoch):
            ended, self.next_step = divmod(step + 1, self.steps_per_epoch)
            self.next_epoch = epoch + ended
            yield self._batch(rows, step, self._batch_size)

    def sequential(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, in the order of the shards, `batch_size` rows a global batch: for evaluation."""
        rows = np.arange(len(self.split), dtype=np.int64)
        for step in range(-(-len(rows) // batch_size)):
            yield self._batch(rows, step, batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch is: six scalars, the same on every rank."""
        return {**self._identity(), "epoch": self.next_epoch, "step": self.next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set `next_epoch` and `next_step`, with any number of ranks.

        Raises:
            UserError: the state belongs to other data, or to another order of them.
        """
        for name, here in self._identity().items():
            if state[name] != here:
                raise UserError(
                    f"checkpoint: {name}: it was written with {state[name]}, and this run has {here}, so it would see "
                    "other rows. Restore what was changed, or start a new run"
                )
        self.next_epoch, self.next_step = state["epoch"], state["step"]

    def _identity(self) -> dict[str, Any]:
        return {
            "digest": self.split.digest,
            "seed": self._seed,
            "global_batch_size": self._batch_size,
            "version": ORDER_VERSION,
        }

    def _batch(self, rows: NDArray[np.int64], step: int, batch_size: int) -> Batch:
        part = rank_positions(step, rows=len(rows), batch_size=batch_size, rank=self._rank, world=self._world)
        return replace(
            self.split.batch(rows[part.positions]),
            weight=torch.from_numpy(part.weight),
            position=torch.from_numpy(part.places),
            global_rows=part.global_rows,
        )


def _map(path: Path, entry: ShardEntry, layout: Layout) -> Bytes:
    """The samples of a tar, [rows, stride], read-only."""
    # Torch closes the file once it is mapped; a numpy memmap keeps it open, and a process may open about a thousand.
    mapped = torch.from_file(str(path), size=entry.bytes, dtype=torch.uint8).numpy()
    mapped.flags.writeable = False
    return layout.samples(mapped, entry.rows)


def _whole(images: Bytes) -> NDArray[np.void]:
    """[rows, bytes] -> [rows] of items as long as an image, so that numpy copies an image in one piece."""
    return images.view(np.dtype((np.void, images.shape[1])))[:, 0]


def _problem(path: Path, entry: ShardEntry, layout: Layout) -> str | None:
    """What is wrong with a shard; None when it is as it was written."""
    if not path.is_file():
        return f"{path}: no such file, and the manifest names it"
    size = path.stat().st_size
    if size != entry.bytes:
        return f"{path}: expected {entry.bytes:,} bytes, found {size:,}"
    if entry.bytes != layout.file_bytes(entry.rows):
        return f"{path}: {entry.bytes:,} bytes do not hold {entry.rows:,} samples of this shape"
    found = files.sha256(path)
    if found != entry.sha256:
        return f"{path}: damaged or exchanged: expected sha256 {entry.sha256}, found {found}"
    return None
