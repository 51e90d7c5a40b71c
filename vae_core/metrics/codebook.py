"""How much of a codebook is used, over a whole split (a mean over batches would understate it)."""

import torch
from torch import Tensor

from vae_core.distributed import all_reduce_sum


class CodebookUsage:
    """A histogram of the codes."""

    def __init__(self, num_codes: int) -> None:
        self.histogram = torch.zeros(num_codes, dtype=torch.float64)

    def add(self, codes: Tensor, weight: Tensor) -> None:
        """codes: int64 [B, ...]; weight: [B]."""
        each = weight.double()[:, None].expand(-1, codes[0].numel())
        counts = torch.bincount(codes.flatten(), each.flatten(), minlength=len(self.histogram))
        self.histogram = self.histogram.to(counts.device) + counts

    def compute(self) -> dict[str, float]:
        """Share of the codes that occur at all; perplexity exp(entropy) of their frequencies. Over all ranks."""
        histogram = all_reduce_sum(self.histogram.clone())
        frequency = histogram / histogram.sum()
        entropy = -torch.special.xlogy(frequency, frequency).sum()
        return {
            "codebook_used_fraction": float((histogram > 0).double().mean()),
            "codebook_perplexity": float(entropy.exp()),
        }
