"""How much of the latent space is used."""

import torch
from torch import Tensor

from vae_core.distributed import all_reduce_sum


class ActiveUnits:
    """Counts the latent dimensions whose posterior mean varies over the data: Var_x(E[z | x]) above `threshold`.

    Source: Burda et al., arXiv:1509.00519, section 5.1 (threshold 0.01).
    """

    def __init__(self, latent_dim: int, threshold: float = 0.01) -> None:
        self.threshold = threshold
        self.moments = torch.zeros(3, latent_dim, dtype=torch.float64)  # weight, sum, sum of squares

    def add(self, mean: Tensor, weight: Tensor) -> None:
        """mean: [B, latent_dim] posterior means; weight: [B]."""
        mean, weight = mean.double(), weight.double()[:, None]
        rows = torch.stack(((weight + 0 * mean).sum(0), (weight * mean).sum(0), (weight * mean.square()).sum(0)))
        self.moments = self.moments.to(rows.device) + rows

    def variances(self) -> Tensor:
        """[latent_dim], over all ranks."""
        weight, total, squares = all_reduce_sum(self.moments.clone())
        variances: Tensor = squares / weight - (total / weight).square()
        return variances

    def compute(self) -> int:
        return int((self.variances() > self.threshold).sum())
