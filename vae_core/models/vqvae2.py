"""Hierarchical vector-quantised autoencoder: grids of codes, each half the size of the one below it.

Source: Razavi et al., arXiv:1906.00446, section 3.1. The upper levels reach the decoder by repeating each vector over
the places below it; a side of odd length is halved upwards.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_core.config import ConvConfig, DataSpec, VQVAE2Config
from vae_core.likelihoods import PixelHead, Pixels
from vae_core.models.base import CodeModel, Codes, Followed, Inputs
from vae_core.models.vqvae import VQOutput
from vae_core.networks import ACTIVATIONS, ConvDown, ConvUp, grid_shape, is_signal, join_channels, residuals, same_size
from vae_core.noise import Noise
from vae_core.quantize import Quantized, Quantizer, build_quantizer

Grid = tuple[int, int]


class VQVAE2(CodeModel):
    """`levels` grids of codes, quantised from the top down, each given what is decoded from those above it."""

    def __init__(self, config: VQVAE2Config, data: DataSpec) -> None:
        super().__init__(config, data)
        signal, network = is_signal(data.shape), config.network
        width, height, length = grid_shape(network, data.shape)
        self.grids = _grids((height, length), config.levels, signal)
        self.num_codes = config.num_codes
        self.encoder = ConvDown(network, data.channels + self.condition_dim, data.shape)
        self.halvings = nn.ModuleList(_halving(network, width, signal) for _ in self.grids[1:])
        joined = [width, *(2 * width for _ in self.grids[1:])]  # below the top: with what is decoded from above
        self.projections = nn.ModuleList(same_size(channels, config.code_dim, 1, signal) for channels in joined)
        self.quantizers = nn.ModuleList(build_quantizer(config) for _ in self.grids)
        self.expansions = nn.ModuleList(
            _expansion(network, config.code_dim + channels - width, width, signal) for channels in joined[:-1]
        )
        self.head = PixelHead(config, data.channels)
        self.decoder = nn.Sequential(
            same_size(config.levels * config.code_dim + self.condition_dim, width, 3, signal),
            ConvUp(network, self.head.raw_channels, data.shape),
        )

    def quantize(self, x: Tensor, c: Tensor | None) -> tuple[Quantized, ...]:
        """The codes of observed pixels x [B, C, H, W] at every level, the top one first."""
        features = [self.encoder(join_channels(x, c))]
        for halve in self.halvings:
            features.insert(0, halve(features[0]))
        found: list[Quantized] = []
        above: list[Tensor] = []  # at most one: what is decoded from the levels above, at the size of this one
        for i, here in enumerate(features):
            found.append(self.quantizers[i](self.projections[i](torch.cat([here, *above], dim=1))))
            if i + 1 < len(features):
                decoded = self.expansions[i](torch.cat([found[i].straight_through(), *above], dim=1))
                above = [F.interpolate(decoded, size=self.grids[i + 1])]
        return tuple(found)

    def forward(self, inputs: Inputs) -> VQOutput:
        """Encode from the bottom up, take the nearest codes from the top down, decode; nothing is random."""
        found = self.quantize(inputs.x, inputs.condition)
        vectors = [level.straight_through() for level in found]
        return VQOutput(found, self._decode(vectors, inputs.condition))

    def followed(self, output: VQOutput, inputs: Inputs) -> Followed:
        levels = enumerate(output.levels)
        return {f"{name}/{i}": getattr(level, name) for i, level in levels for name in ("encoded", "codes")}

    @torch.no_grad()
    def update(self, followed: Followed, row_weight: Tensor, noise: Noise, taken: Tensor) -> None:
        for i, quantizer in enumerate(self._quantizers()):
            encoded, codes = followed[f"encoded/{i}"], followed[f"codes/{i}"]
            quantizer.update(encoded, codes, row_weight, noise, taken, f"codes of level {i}")

    def represent(self, x: Tensor, c: Tensor | None) -> Codes:
        return tuple(found.codes for found in self.quantize(x, c))

    def decode(self, latent: Codes, c: Tensor | None) -> Pixels:
        vectors = [quantizer.lookup(codes) for quantizer, codes in zip(self._quantizers(), latent, strict=True)]
        return self._decode(vectors, c)

    def vectors(self, latent: Codes) -> Tensor:
        levels = zip(self._quantizers(), latent, strict=True)
        return torch.cat([quantizer.lookup(codes).flatten(1) for quantizer, codes in levels], dim=1)

    def between(self, start: Codes, end: Codes, fraction: float) -> Codes:
        ends = zip(self._quantizers(), start, end, strict=True)
        return tuple(quantizer.between(one, two, fraction) for quantizer, one, two in ends)

    def _quantizers(self) -> list[Quantizer]:
        return cast(list[Quantizer], list(self.quantizers))

    def _decode(self, vectors: list[Tensor], c: Tensor | None) -> Pixels:
        joined = torch.cat([F.interpolate(level, size=self.grids[-1]) for level in vectors], dim=1)
        pixels: Pixels = self.head(self.decoder(join_channels(joined, c)))
        return pixels


def _grids(lowest: Grid, levels: int, signal: bool) -> tuple[Grid, ...]:
    """Height and width of each level, the top one first.

    Raises:
        ValueError: the lowest grid is too small for so many levels.
    """
    grids = [lowest]
    for _ in range(levels - 1):
        height, width = grids[0]
        if width == 1 or (height == 1 and not signal):
            raise ValueError(
                f"levels: {levels} grids need a lowest one of at least {2 ** (levels - 2) + 1} a side; it is "
                f"{lowest[0]} x {lowest[1]}: choose fewer levels or a smaller network.downsamples"
            )
        grids.insert(0, ((height + 1) // 2, (width + 1) // 2))
    return tuple(grids)


def _halving(config: ConvConfig, width: int, signal: bool) -> nn.Sequential:
    """Features of a level -> features of the one above it."""
    kernel, stride, pad = ((1, 3), (1, 2), (0, 1)) if signal else ((3, 3), (2, 2), (1, 1))
    halve = nn.Conv2d(width, width, kernel_size=kernel, stride=stride, padding=pad)
    return nn.Sequential(ACTIVATIONS[config.activation](), halve, *residuals(config, width, signal))


def _expansion(config: ConvConfig, channels: int, width: int, signal: bool) -> nn.Sequential:
    """Codes of a level, with what is decoded from above it -> features for the level below, not yet enlarged."""
    return nn.Sequential(same_size(channels, width, 3, signal), *residuals(config, width, signal))
