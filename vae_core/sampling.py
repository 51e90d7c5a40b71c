"""What a trained model can show. Every function returns means of the pixels in [0, 1], never draws of them."""

import torch
from torch import Tensor

from vae_core.models import Model
from vae_core.models.vae import VAE
from vae_core.models.vqvae import VQVAE


@torch.no_grad()
def reconstruct(model: Model, x: Tensor, labels: Tensor | None = None) -> Tensor:
    """[B, C, H, W] through the posterior mean (VAE) or the nearest codes (VQ-VAE)."""
    if isinstance(model, VQVAE):
        return model.decode(model.quantizer.nearest(model.encode(x))).mean
    return model.decode(model.encode(x, labels).mean, labels).mean


@torch.no_grad()
def sample_prior(model: VAE, count: int, *, seed: int, labels: Tensor | None = None) -> Tensor:
    """[count, C, H, W] decoded from draws of N(0, I); `labels` [count] for a conditional model."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, model.config.latent_dim, generator=generator)
    return model.decode(z, labels).mean


@torch.no_grad()
def interpolate(model: Model, start: Tensor, end: Tensor, steps: int, labels: Tensor | None = None) -> Tensor:
    """[B, steps, C, H, W] along the straight line between what the encoder gives for two images each.

    The line runs between posterior means (VAE), or between encoder outputs, each point quantised (VQ-VAE).
    """
    fractions = torch.linspace(0, 1, steps).tolist()
    if isinstance(model, VQVAE):
        first, last = model.encode(start), model.encode(end)
        points = [model.decode(model.quantizer.nearest(torch.lerp(first, last, f))).mean for f in fractions]
    else:
        first, last = model.encode(start, labels).mean, model.encode(end, labels).mean
        points = [model.decode(torch.lerp(first, last, f), labels).mean for f in fractions]
    return torch.stack(points, dim=1)
