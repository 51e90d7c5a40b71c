"""Vector-quantised autoencoder. Source: van den Oord et al., arXiv:1711.00937."""

from dataclasses import dataclass

from torch import Tensor, nn

from vae_core.config import DataSpec, VQVAEConfig
from vae_core.likelihoods import PixelHead, Pixels
from vae_core.networks import ConvDown, ConvUp, grid_shape
from vae_core.noise import Noise
from vae_core.quantize import VectorQuantizer


@dataclass(frozen=True, slots=True)
class VQVAEOutput:
    """Encoder outputs [B, D, h, w], the codes chosen for them [B, h, w], those codes' vectors, and the pixels."""

    encoded: Tensor
    codes: Tensor
    quantized: Tensor
    pixels: Pixels


class VQVAE(nn.Module):
    def __init__(self, config: VQVAEConfig, data: DataSpec) -> None:
        super().__init__()
        self.config, self.data = config, data
        width, self.code_height, self.code_width = grid_shape(config.network, data.shape)
        self.encoder = nn.Sequential(ConvDown(config.network, data.channels), nn.Conv2d(width, config.code_dim, 1))
        self.quantizer = VectorQuantizer(
            num_codes=config.num_codes,
            code_dim=config.code_dim,
            ema_decay=config.ema_decay,
            restart_below=config.restart_below,
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(config.code_dim, width, 3, padding=1), ConvUp(config.network, data.channels)
        )
        self.head = PixelHead(config.likelihood)

    @property
    def positions(self) -> int:
        """Codes an image."""
        return self.code_height * self.code_width

    def encode(self, x: Tensor) -> Tensor:
        """Encoder outputs [B, D, h, w], not yet quantised, of observed pixels x [B, C, H, W]."""
        encoded: Tensor = self.encoder(x)
        return encoded.float()

    def decode(self, codes: Tensor) -> Pixels:
        """p(x | codes) for int64 codes [B, h, w]."""
        return self._decode(self.quantizer.lookup(codes))

    def forward(self, x: Tensor, labels: Tensor | None, noise: Noise) -> VQVAEOutput:
        """Encode, take the nearest codes, decode. Deterministic: labels and noise are not used.

        The gradient of `pixels` reaches `encoded` unchanged (straight-through, section 3.2).
        """
        encoded = self.encode(x)
        codes = self.quantizer.nearest(encoded)
        quantized = self.quantizer.lookup(codes)
        return VQVAEOutput(encoded, codes, quantized, self._decode(encoded + (quantized - encoded).detach()))

    def _decode(self, quantized: Tensor) -> Pixels:
        pixels: Pixels = self.head(self.decoder(quantized))
        return pixels
