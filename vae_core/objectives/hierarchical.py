"""Objective of the deep hierarchical VAE: distortion and the weighed rates of its groups."""

import torch
from torch import Tensor

from vae_core.config import HierarchicalConfig
from vae_core.models.base import Inputs
from vae_core.models.hierarchical import HierarchicalOutput
from vae_core.normal import kl
from vae_core.objectives.free_bits import free_bits, mean_over_rows
from vae_core.objectives.terms import Terms, elbo_parts

BALANCED = 0.3  # of the run: the groups' rates are weighed until then
LEAST_RATE = 1e-4  # nats a latent number; a group that carries less is weighed as if it carried this


def hierarchical_terms(config: HierarchicalConfig, output: HierarchicalOutput, inputs: Inputs) -> Terms:
    """Distortion + beta x the sum over the groups of weight x max(free_bits, rate).

    Source: arXiv:2007.03898, equation 1 and appendix A; free bits: arXiv:1606.04934, equation 15.
    """
    distortion, rates = output.pixels.nll(inputs.x), group_rates(output)
    means = mean_over_rows(rates, inputs)
    cost = rates
    if config.free_bits > 0:
        cost = free_bits(rates, means, config.free_bits)
    if config.balance:
        sizes = means.new_tensor([z[0].numel() for z in output.latents])
        cost = cost * torch.where(inputs.progress < BALANCED, balance(means, sizes), 1.0)
    loss = distortion + inputs.weights["beta"] * cost.sum(1)
    return Terms(loss, elbo_parts(distortion, rates.sum(1)))


def group_rates(output: HierarchicalOutput) -> Tensor:
    """KL(q(z_l | x, z_<l) || p(z_l | z_<l)) of each group in nats, float32 [B, groups], the top group first."""
    return torch.stack([kl(q, p) for q, p in zip(output.posteriors, output.priors, strict=True)], dim=1)


def balance(means: Tensor, sizes: Tensor) -> Tensor:
    """Weights [groups] of mean 1, proportional to each group's rate per latent number.

    A group that carries little pays little for carrying more, so that none dies while the others learn. The paper's
    text says proportional to rate x size; by its author that is a slip and it is rate / size, as here
    (github.com/NVlabs/NVAE/issues/26).
    """
    weights = (means / sizes).clamp_min(LEAST_RATE)
    return weights / weights.mean()
