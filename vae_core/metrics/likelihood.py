"""Importance-weighted estimate of -log p(x)."""

import math

import torch
from torch import Tensor

from vae_core.models.vae import VAE
from vae_core.noise import Noise


@torch.no_grad()
def importance_weighted_nll(
    model: VAE, x: Tensor, labels: Tensor | None, *, noise: Noise, samples: int, chunk: int = 10
) -> Tensor:
    """-log (1/k) sum_i p(x | z_i) p(z_i) / q(z_i | x) with k = `samples` draws from the posterior, in nats.

    An upper bound of -log p(x) in expectation, tighter with more samples. Memory grows with `chunk`, not with
    `samples`: the sum is carried as a running log-sum-exp.

    Args:
        x: [B, C, H, W] observed pixels.
        labels: [B], or None for a model without a condition.

    Returns:
        [B].

    Source: Burda et al., arXiv:1509.00519, equation 8.
    """
    posterior = model.encode(x, labels)
    total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
    for first in range(0, samples, chunk):
        draws = min(chunk, samples - first)
        epsilon = noise.normal(f"importance/{first}", draws, model.config.latent_dim)
        log_weight = torch.stack([_log_weight(model, x, labels, posterior.draw(e), e, posterior.log_var)
                                  for e in epsilon.unbind(1)])  # fmt: skip
        total = torch.logaddexp(total, torch.logsumexp(log_weight.double(), dim=0))
    return math.log(samples) - total


def _log_weight(model: VAE, x: Tensor, labels: Tensor | None, z: Tensor, epsilon: Tensor, log_var: Tensor) -> Tensor:
    """log p(x | z) + log p(z) - log q(z | x), [B]; the constants of the two normals cancel."""
    log_prior = -0.5 * z.square().sum(1)
    log_posterior = -0.5 * (epsilon.square() + log_var).sum(1)
    return log_prior - log_posterior - model.decode(z, labels).nll(x)
