"""Importance-weighted autoencoder. Source: Burda et al., arXiv:1509.00519."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_core.models.base import Inputs
from vae_core.models.gaussian import GaussianModel
from vae_core.normal import DiagonalNormal


@dataclass(frozen=True, slots=True)
class IWAEOutput:
    """q(z | x), p(z) (None: standard normal) and, of each draw, [S, B] nats:

    Attributes:
        log_likelihood: log p(x | z).
        log_weight: log p(x, z) - log q(z | x), differentiable as the estimator wants it.
    """

    posterior: DiagonalNormal
    prior: DiagonalNormal | None
    log_likelihood: Tensor
    log_weight: Tensor


class IWAE(GaussianModel):
    """The VAE's networks, trained on the importance-weighted bound."""

    def forward(self, inputs: Inputs) -> IWAEOutput:
        x, c = inputs.x, inputs.condition
        q = self.encode(x, c)
        z = q.draw(inputs.draws["posterior"].movedim(1, 0))
        if self.config.gradient == "dreg":
            z = self._with_scaled_gradient(x, c, q, z)
        log_q = (q if self.config.gradient == "iwae" else q.detach()).log_prob(z)
        log_likelihood = self.log_likelihood(x, c, z)
        return IWAEOutput(q, self.prior(c), log_likelihood, log_likelihood + self.log_prior(z, c) - log_q)

    def _with_scaled_gradient(self, x: Tensor, c: Tensor | None, q: DiagonalNormal, z: Tensor) -> Tensor:
        """The same z, through which each draw's gradient passes multiplied by its normalised weight.

        The loss weighs each draw once; DReG wants the square for the encoder (arXiv:1810.04152, equation 8). The
        weights take a forward pass of their own, which costs less than hooks that no compiler can see through.
        """
        with torch.no_grad():
            weight = (self.log_joint(x, c, z) - q.log_prob(z)).softmax(0)[..., None]
        return z.detach() + weight * (z - z.detach())
