"""Batches of a split in an order that does not depend on the number of ranks."""

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.device_cache import DeviceCache, wanted
from pipeline.data.order import ORDER_VERSION, RankRows, order, rank_positions
from pipeline.data.prefetch import prefetch, read_ahead
from pipeline.data.split_reader import Split, open_split
from pipeline.errors import UserError
from vae_core.batch import Batch

__all__ = ["Loader", "Split", "open_split"]

CACHED_AT_ONCE = 4096  # rows


class Loader:
    """One rank's batches of a split.

    All ranks make the same number of steps, and every row of the split is in exactly one batch of one rank an epoch.
    What a batch holds over all ranks depends on seed, epoch and step, not on `world`.

    Iterating gives the rest of the epoch at which the loader stands; a whole run, resumed or not, is

        for epoch in range(loader.next_epoch, epochs):
            for batch in loader:
                ...

    Attributes:
        split: what is read.
        next_epoch: epoch of the batch after the one given out last; after `load_state_dict`, where to go on.
        next_step: its step within that epoch.
    """

    def __init__(
        self,
        split: Split,
        seed: int,
        window_shards: int,
        global_batch_size: int,
        rank: int = 0,
        world: int = 1,
        lanes: int = 1,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank: expected 0 to {world - 1}, got {rank}")
        if min(window_shards, global_batch_size, lanes) < 1:
            raise ValueError("window_shards, global_batch_size and lanes: expected integers of at least 1")
        self.split = split
        self.next_epoch = self.next_step = 0
        self._seed, self._window_shards, self._batch_size = seed, window_shards, global_batch_size
        self._rank, self._world, self._lanes = rank, world, lanes
        self._device = torch.device("cpu")
        self._cache: DeviceCache | None = None

    def on(self, device: torch.device, cache: bool | Literal["auto"] = False) -> "Loader":
        """Give batches on `device` from now on; the same ones. Returns the loader.

        Args:
            cache: keep the whole split there; auto: on a GPU that has room enough.

        Raises:
            UserError: the split is to be kept there and does not fit.
        """
        self._device, self._cache = device, None
        if wanted(self.split, device, cache):
            everything = Loader(self.split, self._seed, self._window_shards, self._batch_size).on(device)
            self._cache = DeviceCache(everything.sequential(CACHED_AT_ONCE), len(self.split), device)
        return self

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.split) // self._batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(self.next_epoch, self.next_step)

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch in its shuffled order, from `first_step` on."""
        with closing(self._batches(self._order(epoch), first_step, self._batch_size)) as batches:
            for step, batch in enumerate(batches, first_step):
                # Here and not where it is gathered: what was prefetched and not used is given again after a restart.
                ended, self.next_step = divmod(step + 1, self.steps_per_epoch)
                self.next_epoch = epoch + ended
                yield batch

    def ids(self, epoch: int, step: int, positions: NDArray[np.int64]) -> list[str]:
        """The source's names of the rows at `positions` [n] of a global batch."""
        rows = self._order(epoch)[step * self._batch_size + positions]
        return self.split.ids(rows)

    def sequential(self, batch_size: int) -> Generator[Batch, None, None]:
        """Every row once, in the order of the shards, `batch_size` rows a global batch: for evaluation."""
        return self._batches(np.arange(len(self.split), dtype=np.int64), 0, batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch is: six scalars, the same on every rank."""
        return {**self._identity(), "epoch": self.next_epoch, "step": self.next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set `next_epoch` and `next_step`, with any number of ranks.

        Raises:
            UserError: the state belongs to other data, or to another order of them.
        """
        if missing := sorted(self.state_dict().keys() - state.keys()):
            raise UserError(f"checkpoint: not the state of a loader: it has no {', '.join(missing)}")
        for name, here in self._identity().items():
            if state[name] != here:
                raise UserError(
                    f"checkpoint: {name}: it was written with {state[name]}, and this run has {here}, so it would see "
                    "other rows. Restore what was changed, or start a new run"
                )
        self.next_epoch, self.next_step = state["epoch"], state["step"]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return order(
            self.split.shard_rows,
            seed=self._seed,
            epoch=epoch,
            window_shards=self._window_shards,
            generations=self.split.generations,
            lanes=self._lanes,
        )

    def _identity(self) -> dict[str, Any]:
        return {
            "digest": self.split.digest,
            "seed": self._seed,
            "global_batch_size": self._batch_size,
            "version": f"{ORDER_VERSION}/window={self._window_shards}/lanes={self._lanes}",
        }

    def _batches(self, rows: NDArray[np.int64], first_step: int, batch_size: int) -> Generator[Batch, None, None]:
        """This rank's parts of the global batches of `rows`, from `first_step` on, on the loader's device."""
        parts: Iterator[RankRows] = (
            rank_positions(step, rows=len(rows), batch_size=batch_size, rank=self._rank, world=self._world)
            for step in range(first_step, -(-len(rows) // batch_size))
        )
        if self._cache:
            return (self._batch(self._cache, rows, part).to(self._device) for part in parts)
        if self.split.local and self._device.type == "cpu":  # a gather costs less than handing it to a thread
            return (self._batch(self.split, rows, part) for part in parts)
        if not self.split.local:
            parts = read_ahead(parts, lambda part: self._shards(rows, part), self.split.fetch, self._shards_ahead)
        return prefetch((self._batch(self.split, rows, part) for part in parts), self._device)

    def _shards(self, rows: NDArray[np.int64], part: RankRows) -> list[int]:
        return self.split.shards_of(rows[part.positions])

    @property
    def _shards_ahead(self) -> int:
        """Shards to fetch before their use: two windows of this rank's lanes, less where the cache has no room."""
        used = self._window_shards * -(-self._lanes // self._world)
        return max(1, min(2 * used, self.split.mapped_shards - used))

    def _batch(self, source: Split | DeviceCache, rows: NDArray[np.int64], part: RankRows) -> Batch:
        return Batch(
            **source.gather(rows[part.positions]),
            weight=torch.from_numpy(part.weight),
            position=torch.from_numpy(part.places),
            global_rows=part.global_rows,
        )
