"""Plain autoencoder: no prior and no noise, the baseline that shows what regularisation costs in reconstruction."""

from dataclasses import dataclass

from torch import Tensor

from vae_core.config import AutoencoderConfig, DataSpec
from vae_core.likelihoods import PixelHead, Pixels
from vae_core.linear import Linear
from vae_core.models.base import ContinuousModel, Inputs
from vae_core.networks import build_decoder, build_encoder


@dataclass(frozen=True, slots=True)
class AutoencoderOutput:
    """The code [B, L] and the pixels decoded from it."""

    latent: Tensor
    pixels: Pixels


class Autoencoder(ContinuousModel):
    """A deterministic encoder and a decoder."""

    def __init__(self, config: AutoencoderConfig, data: DataSpec) -> None:
        super().__init__(config, data)
        self.latent_dim = config.latent_dim
        self.encoder = build_encoder(config.network, data.shape, self.condition_dim)
        self.to_latent = Linear(self.encoder.features, config.latent_dim)
        self.head = PixelHead(config, data.channels)
        pixels = (self.head.raw_channels, data.height, data.width)
        self.decoder = build_decoder(config.network, config.latent_dim, pixels, self.condition_dim)

    def forward(self, inputs: Inputs) -> AutoencoderOutput:
        latent = self.represent(inputs.x, inputs.condition)
        return AutoencoderOutput(latent, self.decode(latent, inputs.condition))

    def represent(self, x: Tensor, c: Tensor | None) -> Tensor:
        latent: Tensor = self.to_latent(self.encoder(x, c))
        return latent

    def decode(self, latent: Tensor, c: Tensor | None) -> Pixels:
        """p(x | z, c) for codes [B, L]."""
        pixels: Pixels = self.head(self.decoder(latent, c))
        return pixels
