"""Variational autoencoder with a Gaussian posterior, conditional where its configuration names a condition.

Source: Kingma & Welling, arXiv:1312.6114; conditional form: Sohn et al., NeurIPS 2015, with the prior N(0, I).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vae_core.conditioning import LabelCondition
from vae_core.config import DataSpec, VAEConfig
from vae_core.likelihoods import PixelHead, Pixels
from vae_core.networks import build_decoder, build_encoder
from vae_core.noise import Noise


@dataclass(frozen=True, slots=True)
class Posterior:
    """q(z | x) = N(mean, exp(log_var)), both [B, latent_dim]."""

    mean: Tensor
    log_var: Tensor

    def draw(self, epsilon: Tensor) -> Tensor:
        """z for standard normal `epsilon` [..., B, latent_dim] (the reparameterisation)."""
        return self.mean + torch.exp(0.5 * self.log_var) * epsilon


@dataclass(frozen=True, slots=True)
class VAEOutput:
    posterior: Posterior
    latent: Tensor
    pixels: Pixels


class VAE(nn.Module):
    def __init__(self, config: VAEConfig, data: DataSpec) -> None:
        super().__init__()
        self.config, self.data = config, data
        self.condition = LabelCondition(data.num_classes) if config.condition == "label" else None
        condition_dim = self.condition.dim if self.condition else 0
        self.encoder = build_encoder(config.network, data.shape, condition_dim)
        self.to_posterior = nn.Linear(self.encoder.features, 2 * config.latent_dim)
        self.decoder = build_decoder(config.network, config.latent_dim, data.shape, condition_dim)
        self.head = PixelHead(config.likelihood)

    def encode(self, x: Tensor, labels: Tensor | None = None) -> Posterior:
        """q(z | x, labels) for observed pixels x [B, C, H, W]."""
        features = self.encoder(x, self._condition(labels))
        mean, log_var = self.to_posterior(features).float().chunk(2, dim=1)
        return Posterior(mean, log_var)

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Pixels:
        """p(x | z, labels) for latents z [B, latent_dim]."""
        pixels: Pixels = self.head(self.decoder(z, self._condition(labels)))
        return pixels

    def forward(self, x: Tensor, labels: Tensor | None, noise: Noise) -> VAEOutput:
        """Encode, draw one latent, decode."""
        posterior = self.encode(x, labels)
        latent = posterior.draw(noise.normal("posterior", self.config.latent_dim))
        return VAEOutput(posterior, latent, self.decode(latent, labels))

    def _condition(self, labels: Tensor | None) -> Tensor | None:
        if self.condition is None:
            return None
        condition: Tensor = self.condition(labels)
        return condition
