"""Annealed importance sampling: a lower bound of log p(x) that owes nothing to the encoder.

Chains go from the prior to the posterior through p(z) p(x | z)^b, b from 0 to 1, by Hamiltonian Monte Carlo. Where the
encoder misses modes or tails of the posterior, importance sampling from it says too little and does not show it.

Source: Neal, Annealed importance sampling, Statistics and Computing 11 (2001); for decoders: Wu et al.,
arXiv:1611.04273.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from vae_core.noise import Noise

LEAPFROG_STEPS = 10  # a proposal, as Wu et al.
TARGET_ACCEPTANCE = 0.65  # near the optimum of Hamiltonian Monte Carlo
FASTER, SLOWER = 1.02, 0.98  # of the step size after an acceptance above or below the target
FIRST_STEP_SIZE = 0.1
MEMORY = 0.9  # of the running acceptance
PILOT_CHAINS = 4


class HasDensities(Protocol):
    """A model with a continuous latent whose densities can be evaluated: the Gaussian family."""

    latent_dim: int

    def from_prior(self, epsilon: Tensor, c: Tensor | None) -> Tensor: ...

    def log_likelihood(self, x: Tensor, c: Tensor | None, z: Tensor) -> Tensor: ...

    def log_prior(self, z: Tensor, c: Tensor | None) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class AnnealedEstimate:
    """log p(x) of each image, in nats.

    Attributes:
        log_likelihood: float64 [B]; the exponential is unbiased, so this is a lower bound in expectation.
        standard_error: float64 [B], over the chains, to first order.
        acceptance: [B]; share of proposals that were accepted; far from TARGET_ACCEPTANCE the chains hardly move.
    """

    log_likelihood: Tensor
    standard_error: Tensor
    acceptance: Tensor


@dataclass(frozen=True, slots=True)
class _Target:
    """The decoder's side of p(z) p(x | z)^b for some images."""

    model: HasDensities
    x: Tensor
    condition: Tensor | None
    at_once: int

    @torch.no_grad()
    def log_likelihood(self, z: Tensor) -> Tensor:
        """log p(x | z), [S, B], for z [S, B, L]."""
        return torch.cat([self.model.log_likelihood(self.x, self.condition, some) for some in z.split(self.at_once)])

    def gradient(self, z: Tensor, power: float) -> tuple[Tensor, Tensor]:
        """log density [S, B] and its gradient [S, B, L] at this power of the likelihood."""
        values, gradients = [], []
        for some in z.split(self.at_once):
            with torch.enable_grad():
                leaf = some.detach().requires_grad_()
                likelihood = self.model.log_likelihood(self.x, self.condition, leaf)
                value = self.model.log_prior(leaf, self.condition) + power * likelihood
                gradients.append(torch.autograd.grad(value.sum(), leaf)[0])
            values.append(value.detach())
        return torch.cat(values), torch.cat(gradients)


def sigmoidal_schedule(steps: int, sharpness: float = 4.0) -> list[float]:
    """Powers of the likelihood from 0 to 1, `steps` + 1 of them, closest at both ends.

    Source: Wu et al., arXiv:1611.04273 (sigmoid spacing).
    """
    raw = [1 / (1 + math.exp(-sharpness * (2 * step / steps - 1))) for step in range(steps + 1)]
    return [(value - raw[0]) / (raw[-1] - raw[0]) for value in raw]


def annealed_importance(
    model: HasDensities,
    x: Tensor,
    c: Tensor | None,
    *,
    noise: Noise,
    steps: int = 500,
    chains: int = 16,
    chunk: int = 2000,
) -> AnnealedEstimate:
    """Estimate of log p(x) by `chains` chains an image through `steps` intermediate distributions.

    The step size of each image and power is found by other chains first and then kept: step sizes that follow the
    chains that are counted would cost the estimate its unbiasedness.

    Args:
        x: [B, C, H, W] observed pixels.
        c: [B, E] condition, or None.
        chunk: images x chains that are decoded at once; one chain of all images at the least.

    Raises:
        ValueError: fewer than two chains, which have no standard error, or no steps.
    """
    if chains < 2 or steps < 1:
        raise ValueError(f"expected at least 2 chains and 1 step, got {chains} and {steps}")
    target = _Target(model, x, c, at_once=max(1, chunk // max(1, len(x))))
    powers = sigmoidal_schedule(steps)
    first = torch.full((len(x),), FIRST_STEP_SIZE, device=x.device)
    _, sizes, _ = _anneal(target, noise, "ais/pilot", powers, min(PILOT_CHAINS, chains), first)
    log_weight, _, acceptance = _anneal(target, noise, "ais", powers, chains, sizes)
    total = log_weight.logsumexp(0)
    relative = torch.exp(log_weight - total) * chains  # weights over their mean
    error = relative.std(0) / math.sqrt(chains)
    return AnnealedEstimate(total - math.log(chains), error, acceptance)


def _anneal(
    target: _Target, noise: Noise, purpose: str, powers: list[float], chains: int, sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-weights float64 [chains, B], step sizes [steps, B] and acceptance [B].

    sizes: [B] of the first step, to be adapted, or [steps, B], to be kept.
    """
    latent_dim = target.model.latent_dim
    start = noise.normal(f"{purpose}/start", chains, latent_dim).movedim(1, 0)
    with torch.no_grad():
        z = target.model.from_prior(start, target.condition)
    log_weight = torch.zeros(z.shape[:2], dtype=torch.float64, device=z.device)
    adapt, size, used = sizes.dim() == 1, sizes, []
    recent = torch.full_like(z[0, :, 0], TARGET_ACCEPTANCE)
    accepted = torch.zeros_like(recent)
    for step, (before, power) in enumerate(pairwise(powers)):
        log_weight += (power - before) * target.log_likelihood(z).double()
        size = size if adapt else sizes[step]
        used.append(size)
        momentum = noise.normal(f"{purpose}/momentum/{step}", chains, latent_dim).movedim(1, 0)
        uniform = noise.uniform(f"{purpose}/accept/{step}", chains).movedim(1, 0)
        z, moved = _transition(target, z, power, size, momentum, uniform)
        accepted += moved
        recent = MEMORY * recent + (1 - MEMORY) * moved
        if adapt:
            size = size * torch.where(recent > TARGET_ACCEPTANCE, FASTER, SLOWER)
    return log_weight, torch.stack(used), accepted / (len(powers) - 1)


def _transition(
    target: _Target, z: Tensor, power: float, size: Tensor, momentum: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """One Hamiltonian proposal and its Metropolis test: z [S, B, L] and the share accepted [B]."""
    step = size[:, None]
    value, slope = target.gradient(z, power)
    energy = value - 0.5 * momentum.square().sum(-1)
    place = z
    for _ in range(LEAPFROG_STEPS):
        momentum = momentum + 0.5 * step * slope
        place = place + step * momentum
        value, slope = target.gradient(place, power)
        momentum = momentum + 0.5 * step * slope
    log_ratio = value - 0.5 * momentum.square().sum(-1) - energy
    accept = (uniform.log() < log_ratio) & place.isfinite().all(-1)  # a NaN ratio is no acceptance
    return torch.where(accept[..., None], place, z), accept.float().mean(0)
