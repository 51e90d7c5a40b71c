"""Normal distributions with a diagonal covariance: densities, draws and divergences, in nats and float32."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, slots=True)
class DiagonalNormal:
    """N(mean, exp(log_var)), both [B, L] and float32."""

    mean: Tensor
    log_var: Tensor

    def draw(self, epsilon: Tensor) -> Tensor:
        """z for standard normal `epsilon` [..., B, L] (the reparameterisation of arXiv:1312.6114, section 2.4)."""
        return self.mean + torch.exp(0.5 * self.log_var) * epsilon

    def log_prob(self, z: Tensor) -> Tensor:
        """log density of z [..., B, L] in nats: [..., B]."""
        return self.log_prob_each(z).sum(-1)

    def log_prob_each(self, z: Tensor) -> Tensor:
        """log density of each dimension of z [..., B, L] in nats: [..., B, L]."""
        squared = (z.float() - self.mean).square() * torch.exp(-self.log_var)
        return -0.5 * (squared + self.log_var + LOG_2PI)

    def detach(self) -> "DiagonalNormal":
        return DiagonalNormal(self.mean.detach(), self.log_var.detach())


def standard_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I) in nats: [..., L] -> [...]."""
    return -0.5 * (z.float().square() + LOG_2PI).sum(-1)


def kl_each(q: DiagonalNormal, p: DiagonalNormal | None = None) -> Tensor:
    """KL(q || p) of each dimension in nats, [B, L]; p None: N(0, I).

    Raises:
        ValueError: the shapes differ.

    Source: Kingma & Welling, arXiv:1312.6114, appendix B.
    """
    for other in (q.log_var, *((p.mean, p.log_var) if p else ())):
        if other.shape != q.mean.shape:
            raise ValueError(f"expected the shape of the mean {tuple(q.mean.shape)}, got {tuple(other.shape)}")
    mean, log_var = q.mean.float(), q.log_var.float()
    if p is None:
        return 0.5 * (mean.square() + log_var.exp() - 1 - log_var)
    ratio = log_var - p.log_var.float()
    distance = (mean - p.mean.float()).square() * torch.exp(-p.log_var.float())
    return 0.5 * (distance + ratio.exp() - 1 - ratio)


def kl(q: DiagonalNormal, p: DiagonalNormal | None = None) -> Tensor:
    """KL(q || p) of each sample in nats, [B]; p None: N(0, I)."""
    return kl_each(q, p).flatten(1).sum(1)
