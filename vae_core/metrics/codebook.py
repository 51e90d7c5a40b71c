"""How much of each codebook is used, over a whole split (a mean over batches would understate it)."""

import torch
from torch import Tensor

from vae_core.distributed import all_reduce_sum


class CodebookUsage:
    """A histogram of the codes of each level."""

    def __init__(self, num_codes: int, levels: int = 1) -> None:
        self.histogram = torch.zeros(levels, num_codes, dtype=torch.float64)

    def add(self, codes: Tensor | tuple[Tensor, ...], weight: Tensor) -> None:
        """codes: int64 [B, ...] of each level, the top one first; weight: [B], 0 for rows that do not count.

        Raises:
            ValueError: not as many grids as levels.
        """
        grids = (codes,) if isinstance(codes, Tensor) else codes
        levels, num_codes = self.histogram.shape
        if len(grids) != levels:
            raise ValueError(f"codes: expected {levels} levels, got {len(grids)}")
        counts = torch.stack([_counts(grid, weight, num_codes) for grid in grids])
        self.histogram = self.histogram.to(counts.device) + counts

    def compute(self) -> dict[str, float]:
        """Share of the codes that occur at all, and perplexity exp(entropy) of their frequencies, over all ranks.

        With several levels, `codebook_*` are those of the level that fares worst, and `codebook_level{i}_*` those of
        each, 0 the top one.
        """
        histogram = all_reduce_sum(self.histogram.clone())
        frequency = histogram / histogram.sum(1, keepdim=True)
        used = (histogram > 0).double().mean(1)
        perplexity = torch.special.entr(frequency).sum(1).exp()
        figures = {"codebook_used_fraction": float(used.min()), "codebook_perplexity": float(perplexity.min())}
        if len(histogram) > 1:
            for level in range(len(histogram)):
                figures[f"codebook_level{level}_used_fraction"] = float(used[level])
                figures[f"codebook_level{level}_perplexity"] = float(perplexity[level])
        return figures


def _counts(codes: Tensor, weight: Tensor, num_codes: int) -> Tensor:
    counted = codes[weight > 0].flatten(1)  # padding may hold anything
    each = weight[weight > 0].double()[:, None].expand_as(counted)
    return torch.bincount(counted.flatten(), each.flatten(), minlength=num_codes)
