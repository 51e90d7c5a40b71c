"""Encoder and decoder bodies, fully connected and convolutional, behind one interface.

An encoder maps images [B, C, H, W] and an optional condition [B, E] to features [B, `features`]; a decoder maps
latents [B, L] and the condition to [B, C, H, W]. A condition of width 0 means none.
"""

import math
from itertools import pairwise
from typing import assert_never

import torch
from torch import Tensor, nn

from vae_core.config import ConvConfig, MLPConfig, NetworkConfig

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}


def build_encoder(config: NetworkConfig, shape: tuple[int, int, int], condition_dim: int) -> "MLPEncoder | ConvEncoder":
    match config:
        case MLPConfig():
            return MLPEncoder(config, shape, condition_dim)
        case ConvConfig():
            return ConvEncoder(config, shape, condition_dim)
        case other:
            assert_never(other)


def build_decoder(
    config: NetworkConfig, latent_dim: int, shape: tuple[int, int, int], condition_dim: int
) -> "MLPDecoder | ConvDecoder":
    match config:
        case MLPConfig():
            return MLPDecoder(config, latent_dim, shape, condition_dim)
        case ConvConfig():
            return ConvDecoder(config, latent_dim, shape, condition_dim)
        case other:
            assert_never(other)


class MLPEncoder(nn.Module):
    def __init__(self, config: MLPConfig, shape: tuple[int, int, int], condition_dim: int) -> None:
        super().__init__()
        self.body = _mlp((math.prod(shape) + condition_dim, *config.hidden), config.activation)
        self.features = config.hidden[-1]

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        features: Tensor = self.body(_join(x.flatten(1), condition))
        return features


class MLPDecoder(nn.Module):
    def __init__(self, config: MLPConfig, latent_dim: int, shape: tuple[int, int, int], condition_dim: int) -> None:
        super().__init__()
        hidden = config.hidden[::-1]
        self.body = _mlp((latent_dim + condition_dim, *hidden), config.activation)
        self.out = nn.Linear(hidden[-1], math.prod(shape))
        self.shape = shape

    def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
        pixels: Tensor = self.out(self.body(_join(z, condition))).unflatten(1, self.shape)
        return pixels


class ConvEncoder(nn.Module):
    def __init__(self, config: ConvConfig, shape: tuple[int, int, int], condition_dim: int) -> None:
        super().__init__()
        self.body = ConvDown(config, shape[0])
        self.features = math.prod(grid_shape(config, shape)) + condition_dim

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return _join(self.body(x).flatten(1), condition)


class ConvDecoder(nn.Module):
    def __init__(self, config: ConvConfig, latent_dim: int, shape: tuple[int, int, int], condition_dim: int) -> None:
        super().__init__()
        self.grid = grid_shape(config, shape)
        self.project = nn.Linear(latent_dim + condition_dim, math.prod(self.grid))
        self.body = ConvUp(config, shape[0])

    def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
        pixels: Tensor = self.body(self.project(_join(z, condition)).unflatten(1, self.grid))
        return pixels


class ConvDown(nn.Module):
    """[B, C, H, W] -> [B, width, H / 2^d, W / 2^d]; the width doubles with each downsampling but the first."""

    def __init__(self, config: ConvConfig, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((in_channels, *_widths(config))):
            layers += [nn.Conv2d(narrow, wide, kernel_size=4, stride=2, padding=1), _ACTIVATIONS[config.activation]()]
        layers += [Residual(_widths(config)[-1], config.activation) for _ in range(config.residual_blocks)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        grid: Tensor = self.layers(x)
        return grid


class ConvUp(nn.Module):
    """The mirror of ConvDown: [B, width, h, w] -> [B, C, h * 2^d, w * 2^d]."""

    def __init__(self, config: ConvConfig, out_channels: int) -> None:
        super().__init__()
        widths = _widths(config)[::-1]
        layers: list[nn.Module] = [Residual(widths[0], config.activation) for _ in range(config.residual_blocks)]
        for i, (wide, narrow) in enumerate(pairwise((*widths, out_channels))):
            layers += [_ACTIVATIONS[config.activation]()] if i == 0 else []
            layers += [nn.ConvTranspose2d(wide, narrow, kernel_size=4, stride=2, padding=1)]
            layers += [_ACTIVATIONS[config.activation]()] if i < len(widths) - 1 else []
        self.layers = nn.Sequential(*layers)

    def forward(self, grid: Tensor) -> Tensor:
        pixels: Tensor = self.layers(grid)
        return pixels


class Residual(nn.Module):
    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _ACTIVATIONS[activation](),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            _ACTIVATIONS[activation](),
            nn.Conv2d(width, width, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


def grid_shape(config: ConvConfig, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """[width, h, w] of the convolutional features of images of this shape.

    Raises:
        ValueError: height or width cannot be halved that often.
    """
    _, height, width = shape
    factor = 2**config.downsamples
    if height % factor or width % factor:
        raise ValueError(
            f"network.downsamples: {config.downsamples} halvings need height and width divisible by {factor}; "
            f"the images are {height} x {width}"
        )
    return _widths(config)[-1], height // factor, width // factor


def _widths(config: ConvConfig) -> list[int]:
    return [config.channels * 2**i for i in range(config.downsamples)]


def _mlp(widths: tuple[int, ...], activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def _join(x: Tensor, condition: Tensor | None) -> Tensor:
    return x if condition is None else torch.cat((x, condition), dim=1)
