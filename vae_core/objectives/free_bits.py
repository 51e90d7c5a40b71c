"""A floor under the rate of each group of latents, so that none is worth switching off."""

import torch
from torch import Tensor

from vae_core.distributed import all_reduce_sum, world_size
from vae_core.models.base import Inputs


def free_bits(rates: Tensor, means: Tensor, nats: float) -> Tensor:
    """[B, G] rates, where a group whose mean is at most `nats` costs that instead, without a gradient.

    Args:
        rates: [B, G] nats.
        means: [G], from `mean_over_rows`.

    Source: Kingma et al., arXiv:1606.04934, equation 15.
    """
    return torch.where(means > nats, rates, nats)


def mean_over_rows(rates: Tensor, inputs: Inputs) -> Tensor:
    """[G], without a gradient: the mean of [B, G] over the rows of the global batch, the same on every rank."""
    counted = torch.where(inputs.row_weight[:, None] > 0, rates.detach(), 0.0)  # padding may hold anything
    total = (counted * inputs.row_weight[:, None]).sum(0)
    if world_size() > 1:
        total = all_reduce_sum(total)
    return total / inputs.global_rows
