"""The codes of a whole split, as a trained model sees its images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.data.loader import Loader, Split
from pipeline.progress import track
from vae_core.likelihoods import observe
from vae_core.models import CodeModel
from vae_core.noise import Noise

BATCH = 500  # images encoded together


@dataclass(frozen=True)
class Coded:
    """The codes of a split and what each is conditioned on.

    Attributes:
        codes: [N, positions]: all levels side by side, as small whole numbers as can hold them.
        condition: float32 [N, E], or None.
        grids: shape of each level's codes, the top level first.
    """

    codes: Tensor
    condition: Tensor | None
    grids: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.codes)

    def rows(self, rows: Tensor, device: torch.device) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Codes int64 [B, *grid] of each level, and the condition [B, E] or None, of `rows` [B]."""
        chosen = self.codes[rows].to(device).long()
        ends = torch.tensor([0, *(math.prod(grid) for grid in self.grids)]).cumsum(0).tolist()
        levels = zip(pairwise(ends), self.grids, strict=True)
        codes = tuple(chosen[:, start:stop].reshape(len(rows), *grid) for (start, stop), grid in levels)
        return codes, None if self.condition is None else self.condition[rows].to(device)


@torch.no_grad()
def encode_split(model: CodeModel, split: Split, *, seed: int, device: torch.device, what: str) -> Coded:
    """The codes of every image of `split`, in its order.

    Images of a Bernoulli likelihood are binarised once, by `seed`.
    """
    model = model.to(device).eval()
    loader = Loader(split, seed=seed, window_shards=1, global_batch_size=BATCH)
    codes: list[Tensor] = []
    conditions: list[Tensor] = []
    batches = track(loader.sequential(BATCH), total=math.ceil(len(split) / BATCH), what=what, unit="batches")
    for step, batch in enumerate(batches):
        batch = batch.to(device)
        noise = Noise.of(batch, seed=seed, scope=f"codes/{split.name}", step=step)
        condition = model.condition(batch)
        found = model.represent(observe(batch.images, model.config.likelihood, noise), condition)
        codes.append(_small(found, model.num_codes))
        if condition is not None:
            conditions.append(condition.cpu())
    return Coded(torch.cat(codes), torch.cat(conditions) if conditions else None, model.grids)


def _small(codes: Sequence[Tensor], num_codes: int) -> Tensor:
    wide = torch.cat([level.flatten(1) for level in codes], dim=1).cpu()
    return wide.to(torch.int16 if num_codes <= 1 << 15 else torch.int32)
