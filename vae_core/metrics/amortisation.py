"""What the encoder costs: its posterior against the best Gaussian posterior of each image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_core.models.gaussian import GaussianModel
from vae_core.noise import Noise
from vae_core.normal import DiagonalNormal, kl


@dataclass(frozen=True, kw_only=True, slots=True)
class Refinement:
    """How the posterior of each image is fitted by Adam.

    Attributes:
        draws: an image and step. Each step has new ones: on the same few, the fit would learn these draws.
        learning_rate: of the first step; it falls linearly to 0.
        evaluation_draws: an image, for each of the two ELBOs.
    """

    steps: int = 200
    draws: int = 8
    learning_rate: float = 0.05
    evaluation_draws: int = 100


@dataclass(frozen=True, slots=True)
class AmortisationGap:
    """Negative ELBO of each image under two posteriors, float64 [B] nats, from the same draws, none used to refine."""

    amortised: Tensor
    refined: Tensor

    @property
    def gap(self) -> Tensor:
        """[B] nats that a better encoder of the same form could save; below 0 by noise only."""
        return self.amortised - self.refined


def amortisation_gap(
    model: GaussianModel, x: Tensor, c: Tensor | None, *, noise: Noise, fit: Refinement | None = None
) -> AmortisationGap:
    """The encoder's ELBO against that of a Gaussian fitted to each image alone, from the encoder's output on.

    Args:
        x: [B, C, H, W] observed pixels.
        c: [B, E] condition, or None.

    Source: Cremer et al., arXiv:1801.03558.
    """
    case = _Case(model, x, c, noise, fit or Refinement())
    with torch.no_grad():
        q = model.encode(x, c)
    best = case.refined(q)
    with torch.no_grad():
        return AmortisationGap(case.evaluated(q), case.evaluated(best))


@dataclass(frozen=True, slots=True)
class _Case:
    model: GaussianModel
    x: Tensor
    condition: Tensor | None
    noise: Noise
    fit: Refinement

    def refined(self, q: DiagonalNormal) -> DiagonalNormal:
        fit, free = self.fit, DiagonalNormal(q.mean.clone().requires_grad_(), q.log_var.clone().requires_grad_())
        optimizer = torch.optim.Adam((free.mean, free.log_var), lr=fit.learning_rate)
        for step in range(fit.steps):
            epsilon = self.model.importance_noise(self.noise, f"amortisation/refine/{step}", fit.draws)
            with torch.enable_grad():
                neg_elbo = self.distortions(free, epsilon).mean(0) + self.rate(free)
                # The sum serves each image alone: no image's cost, and no moment of Adam, depends on another's.
                free.mean.grad, free.log_var.grad = torch.autograd.grad(neg_elbo.sum(), (free.mean, free.log_var))
            for group in optimizer.param_groups:
                group["lr"] = fit.learning_rate * (1 - step / fit.steps)
            optimizer.step()
        return free.detach()

    def evaluated(self, q: DiagonalNormal) -> Tensor:
        """Negative ELBO, float64 [B]."""
        total, draws = self.rate(q).double(), self.fit.evaluation_draws
        for first in range(0, draws, self.fit.draws):
            count = min(self.fit.draws, draws - first)
            epsilon = self.model.importance_noise(self.noise, f"amortisation/evaluate/{first}", count)
            total = total + self.distortions(q, epsilon).double().sum(0) / draws
        return total

    def distortions(self, q: DiagonalNormal, epsilon: Tensor) -> Tensor:
        """-log p(x | z) of each draw, [S, B]."""
        return -self.model.log_likelihood(self.x, self.condition, q.draw(epsilon))

    def rate(self, q: DiagonalNormal) -> Tensor:
        return kl(q, self.model.prior(self.condition))
