"""Vector quantisation with a codebook that follows the encoder by exponential moving averages.

Source: van den Oord et al., arXiv:1711.00937, section 3 and appendix A.1. Two things are not in the paper: the codebook
starts at encoder outputs, and codes that fall out of use restart at encoder outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_core.distributed import all_reduce_sum
from vae_core.noise import Noise


class VectorQuantizer(nn.Module):
    """A codebook of `num_codes` vectors of `code_dim` numbers. Reading never changes it; `update` does."""

    codebook: Tensor
    counts: Tensor
    started: Tensor

    def __init__(self, *, num_codes: int, code_dim: int, ema_decay: float, restart_below: float) -> None:
        super().__init__()
        self.num_codes, self.code_dim = num_codes, code_dim
        self.ema_decay, self.restart_below = ema_decay, restart_below
        generator = torch.Generator().manual_seed(0)  # replaced at the first update
        self.register_buffer("codebook", torch.randn(num_codes, code_dim, generator=generator))
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("started", torch.tensor(False))

    def nearest(self, z: Tensor) -> Tensor:
        """[B, D, h, w] -> int64 [B, h, w]: the code at the least Euclidean distance. Computed in float32."""
        with torch.autocast(z.device.type, enabled=False):
            vectors = z.float().movedim(1, -1)
            distance = self.codebook.square().sum(1) - 2 * vectors @ self.codebook.T
        return distance.argmin(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w] -> [B, D, h, w]."""
        return F.embedding(codes, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def update(self, z: Tensor, codes: Tensor, weight: Tensor, noise: Noise) -> None:
        """Move each code towards the mean of the encoder outputs that chose it, over all ranks.

        Args:
            z: [B, D, h, w] encoder outputs of this rank.
            codes: int64 [B, h, w], what `nearest` gave for them.
            weight: [B]; rows of weight 0 (padding) do not count.
            noise: picks, by place in the global batch, the outputs at which unused codes restart.
        """
        vectors = z.float().movedim(1, -1).flatten(1, -2)  # [B, P, D]
        chosen = F.one_hot(codes.flatten(1), self.num_codes).float() * weight[:, None, None]  # [B, P, K]
        count, total, fresh = self._sum_over_ranks(
            chosen.sum((0, 1)), torch.einsum("bpk,bpd->kd", chosen, vectors), self._candidates(vectors, weight, noise)
        )
        counts = self.counts * self.ema_decay + count * (1 - self.ema_decay)
        sums = self.codebook * self.counts[:, None] * self.ema_decay + total * (1 - self.ema_decay)
        mean_count = count.sum() / self.num_codes
        restart = ((counts < self.restart_below * mean_count) | ~self.started)[:, None]
        # A code that nothing chooses stays: dividing by next to nothing would draw it to the origin.
        moved = torch.where(counts[:, None] > 1e-12, sums / counts[:, None], self.codebook)
        self.codebook.copy_(torch.where(restart, fresh, moved))
        self.counts.copy_(torch.where(restart[:, 0], mean_count, counts))
        self.started.fill_(True)

    def _candidates(self, vectors: Tensor, weight: Tensor, noise: Noise) -> Tensor:
        """[K, D]: an encoder output for each code, picked from the global batch; zeros where another rank holds it."""
        positions = vectors.shape[1]
        pick = noise.integers("restart", noise.rows * positions, self.num_codes)
        held = (pick[:, None] // positions == noise.position[None, :]) & (weight[None, :] > 0)  # [K, B]
        row = held.int().argmax(1)
        return vectors[row, pick % positions] * held.any(1)[:, None]

    def _sum_over_ranks(self, count: Tensor, total: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One collective of a fixed size, whatever the data, so that no rank can wait for another."""
        joined = all_reduce_sum(torch.cat((count[:, None], total, fresh), dim=1))
        return joined[:, 0], joined[:, 1 : 1 + self.code_dim], joined[:, 1 + self.code_dim :]
