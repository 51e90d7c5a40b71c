"""Vector-quantised autoencoder. Source: van den Oord et al., arXiv:1711.00937."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vae_core.config import DataSpec, VQVAEConfig
from vae_core.likelihoods import PixelHead, Pixels
from vae_core.models.base import CodeModel, Codes, Followed, Inputs
from vae_core.networks import ConvDown, ConvUp, grid_shape, is_signal, join_channels, same_size
from vae_core.noise import Noise
from vae_core.quantize import Quantized, build_quantizer


@dataclass(frozen=True, slots=True)
class VQOutput:
    """The grids of codes, the top one first, and the pixels decoded from them."""

    levels: tuple[Quantized, ...]
    pixels: Pixels


class VQVAE(CodeModel):
    """One grid of codes, the sample downsampled `network.downsamples` times."""

    def __init__(self, config: VQVAEConfig, data: DataSpec) -> None:
        super().__init__(config, data)
        signal, network = is_signal(data.shape), config.network
        width, height, length = grid_shape(network, data.shape)
        self.grids, self.num_codes = ((height, length),), config.num_codes
        self.encoder = nn.Sequential(
            ConvDown(network, data.channels + self.condition_dim, data.shape),
            same_size(width, config.code_dim, 1, signal),
        )
        self.quantizer = build_quantizer(config)
        self.head = PixelHead(config, data.channels)
        self.decoder = nn.Sequential(
            same_size(config.code_dim + self.condition_dim, width, 3, signal),
            ConvUp(network, self.head.raw_channels, data.shape),
        )

    def quantize(self, x: Tensor, c: Tensor | None) -> Quantized:
        """The codes of observed pixels x [B, C, H, W], with the vectors that they were chosen for."""
        found: Quantized = self.quantizer(self.encoder(join_channels(x, c)))
        return found

    def forward(self, inputs: Inputs) -> VQOutput:
        """Encode, take the nearest codes, decode; nothing is random."""
        found = self.quantize(inputs.x, inputs.condition)
        return VQOutput((found,), self._decode(found.straight_through(), inputs.condition))

    def followed(self, output: VQOutput, inputs: Inputs) -> Followed:
        return {"encoded": output.levels[0].encoded, "codes": output.levels[0].codes}

    @torch.no_grad()
    def update(self, followed: Followed, row_weight: Tensor, noise: Noise, taken: Tensor) -> None:
        self.quantizer.update(followed["encoded"], followed["codes"], row_weight, noise, taken)

    def represent(self, x: Tensor, c: Tensor | None) -> Codes:
        return (self.quantize(x, c).codes,)

    def decode(self, latent: Codes, c: Tensor | None) -> Pixels:
        return self._decode(self.quantizer.lookup(latent[0]), c)

    def vectors(self, latent: Codes) -> Tensor:
        return self.quantizer.lookup(latent[0]).flatten(1)

    def between(self, start: Codes, end: Codes, fraction: float) -> Codes:
        return (self.quantizer.between(start[0], end[0], fraction),)

    def _decode(self, vectors: Tensor, c: Tensor | None) -> Pixels:
        pixels: Pixels = self.head(self.decoder(join_channels(vectors, c)))
        return pixels
