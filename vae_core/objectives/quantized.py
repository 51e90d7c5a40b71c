"""Objective of the families with codebooks."""

import math

import torch
from torch import Tensor

from vae_core.config import QuantizedConfig
from vae_core.models.base import Inputs
from vae_core.models.vqvae import VQOutput
from vae_core.objectives.terms import Terms, elbo_parts


def vq_terms(config: QuantizedConfig, output: VQOutput, inputs: Inputs) -> Terms:
    """Distortion + commitment_weight x commitment; for codebook `loss` also + the codebook term.

    The rate is that of a uniform prior over the codes: positions x log(num_codes), the same for every sample. `fsq` is
    trained on the distortion alone. `ema` has no codebook term: its codes follow the encoder without a gradient.

    Source: van den Oord et al., arXiv:1711.00937, equation 3, summed over positions, dimensions and levels. Distances
    are squared and Euclidean, between what the quantizer compares: for cosine, vectors of length 1.
    """
    distortion = output.pixels.nll(inputs.x)
    positions = sum(math.prod(level.codes.shape[1:]) for level in output.levels)
    parts = elbo_parts(distortion, torch.full_like(distortion, positions * math.log(config.num_codes)))
    if config.codebook == "fsq":
        return Terms(distortion, parts)
    commitment = _sum_over_levels([(level.encoded - level.vectors.detach()).square() for level in output.levels])
    loss = distortion + inputs.weights["commitment_weight"] * commitment
    if config.codebook == "loss":
        loss = loss + _sum_over_levels([(level.vectors - level.encoded.detach()).square() for level in output.levels])
    return Terms(loss, {**parts, "commitment_squared_distance": commitment})


def _sum_over_levels(squares: list[Tensor]) -> Tensor:
    """[B, D, h, w] of each level -> [B]."""
    return torch.stack([level.flatten(1).sum(1) for level in squares]).sum(0)
