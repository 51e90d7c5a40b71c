"""What the encoder costs: its posterior against the best Gaussian posterior of each image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_core.models.gaussian import GaussianModel
from vae_core.noise import Noise
from vae_core.normal import DiagonalNormal, kl


@dataclass(frozen=True, slots=True)
class AmortisationGap:
    """Negative ELBO of each image under two posteriors, [B] nats, from the same draws, none of them used to refine."""

    amortised: Tensor
    refined: Tensor

    @property
    def gap(self) -> Tensor:
        """[B] nats that a better encoder of the same form could save; below 0 by noise only."""
        return self.amortised - self.refined


def amortisation_gap(
    model: GaussianModel,
    x: Tensor,
    c: Tensor | None,
    *,
    noise: Noise,
    steps: int = 200,
    draws: int = 8,
    evaluation_draws: int = 100,
    learning_rate: float = 0.05,
) -> AmortisationGap:
    """The encoder's ELBO against that of a Gaussian fitted to each image alone by Adam, from the encoder's output on.

    Each step has new draws: on the same few, the fit would learn these draws. The rate of learning falls linearly to 0.

    Args:
        x: [B, C, H, W] observed pixels.
        c: [B, E] condition, or None.
        draws: an image and step.
        evaluation_draws: an image, for each of the two ELBOs.

    Source: Cremer et al., arXiv:1801.03558, section 5.
    """
    with torch.no_grad():
        q = model.encode(x, c)
        prior = model.prior(c)
    refined = _refined(model, x, c, q, prior, noise, steps=steps, draws=draws, learning_rate=learning_rate)
    both = []
    with torch.no_grad():
        for posterior in (q, refined):
            distortion = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            for draw in range(0, evaluation_draws, draws):
                count = min(draws, evaluation_draws - draw)
                epsilon = model.importance_noise(noise, f"amortisation/evaluate/{draw}", count)
                distortion += _distortions(model, x, c, posterior, epsilon).double().sum(0)
            both.append(distortion / evaluation_draws + kl(posterior, prior).double())
    return AmortisationGap(*both)


def _refined(
    model: GaussianModel,
    x: Tensor,
    c: Tensor | None,
    q: DiagonalNormal,
    prior: DiagonalNormal | None,
    noise: Noise,
    *,
    steps: int,
    draws: int,
    learning_rate: float,
) -> DiagonalNormal:
    free = DiagonalNormal(q.mean.clone().requires_grad_(), q.log_var.clone().requires_grad_())
    optimizer = torch.optim.Adam((free.mean, free.log_var), lr=learning_rate)
    for step in range(steps):
        epsilon = model.importance_noise(noise, f"amortisation/refine/{step}", draws)
        with torch.enable_grad():
            neg_elbo = _distortions(model, x, c, free, epsilon).mean(0) + kl(free, prior)
            # One number for all images: the gradient of each has no part of another's, nor has Adam.
            free.mean.grad, free.log_var.grad = torch.autograd.grad(neg_elbo.sum(), (free.mean, free.log_var))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        optimizer.step()
    return free.detach()


def _distortions(model: GaussianModel, x: Tensor, c: Tensor | None, q: DiagonalNormal, epsilon: Tensor) -> Tensor:
    """-log p(x | z) of each draw, [S, B]."""
    z = q.draw(epsilon)
    return model.log_prior(z, c) - model.log_joint(x, c, z)
