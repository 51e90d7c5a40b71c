"""Encoder and decoder bodies, fully connected and convolutional, behind one interface.

An encoder maps samples [B, C, H, W] and an optional condition [B, E] to features [B, `features`]; a decoder maps
latents [B, L] and the condition to [B, C, H, W]. A condition of width 0 means none. Samples of height 1 are signals:
their convolutions and downsamplings are along the width alone.
"""

import math
from itertools import pairwise
from typing import assert_never

import torch
from torch import Tensor, nn

from vae_core.config import Activation, ConvConfig, DataSpec, MLPConfig, NetworkConfig
from vae_core.linear import Linear

Shape = tuple[int, int, int]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}


def default_network(data: DataSpec) -> NetworkConfig:
    """Fully connected for grey images of at most 32 x 32, convolutional for all else; small enough for a CPU."""
    if data.channels == 1 and 1 < data.height <= 32 and data.width <= 32:
        return MLPConfig(kind="mlp", hidden=(512, 256), activation="silu")
    return ConvConfig(kind="conv", channels=32, residual_blocks=2, activation="silu")


def build_encoder(config: NetworkConfig, shape: Shape, condition_dim: int) -> "MLPEncoder | ConvEncoder":
    match config:
        case MLPConfig():
            return MLPEncoder(config, shape, condition_dim)
        case ConvConfig():
            return ConvEncoder(config, shape, condition_dim)
        case other:
            assert_never(other)


def build_decoder(
    config: NetworkConfig, latent_dim: int, shape: Shape, condition_dim: int
) -> "MLPDecoder | ConvDecoder":
    match config:
        case MLPConfig():
            return MLPDecoder(config, latent_dim, shape, condition_dim)
        case ConvConfig():
            return ConvDecoder(config, latent_dim, shape, condition_dim)
        case other:
            assert_never(other)


class MLPEncoder(nn.Module):
    def __init__(self, config: MLPConfig, shape: Shape, condition_dim: int) -> None:
        super().__init__()
        self.body = _mlp((math.prod(shape) + condition_dim, *config.hidden), config.activation)
        self.features = config.hidden[-1]

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        features: Tensor = self.body(_join(x.flatten(1), condition))
        return features


class MLPDecoder(nn.Module):
    def __init__(self, config: MLPConfig, latent_dim: int, shape: Shape, condition_dim: int) -> None:
        super().__init__()
        hidden = config.hidden[::-1]
        self.body = _mlp((latent_dim + condition_dim, *hidden), config.activation)
        self.out = Linear(hidden[-1], math.prod(shape))
        self.shape = shape

    def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
        pixels: Tensor = self.out(self.body(_join(z, condition))).unflatten(1, self.shape)
        return pixels


class ConvEncoder(nn.Module):
    def __init__(self, config: ConvConfig, shape: Shape, condition_dim: int) -> None:
        super().__init__()
        self.body = ConvDown(config, shape[0], shape)
        self.features = math.prod(grid_shape(config, shape)) + condition_dim

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return _join(self.body(x).flatten(1), condition)


class ConvDecoder(nn.Module):
    def __init__(self, config: ConvConfig, latent_dim: int, shape: Shape, condition_dim: int) -> None:
        super().__init__()
        self.grid = grid_shape(config, shape)
        self.project = Linear(latent_dim + condition_dim, math.prod(self.grid))
        self.body = ConvUp(config, shape[0], shape)

    def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
        pixels: Tensor = self.body(self.project(_join(z, condition)).unflatten(1, self.grid))
        return pixels


class ConvDown(nn.Module):
    """[B, in_channels, H, W] -> [B, width, H / 2^d, W / 2^d]; the width doubles with each downsampling but the first.

    `shape` is that of the samples; only its height and width count.
    """

    def __init__(self, config: ConvConfig, in_channels: int, shape: Shape) -> None:
        super().__init__()
        widths, signal = widths_of(config, shape), is_signal(shape)
        layers: list[nn.Module] = []
        if config.kind == "conv":
            for narrow, wide in pairwise((in_channels, *widths)):
                layers += [halving(narrow, wide, signal), ACTIVATIONS[config.activation]()]
        else:
            layers += [same_size(in_channels, widths[0], 3, signal)]
            for narrow, wide in pairwise((widths[0], *widths)):
                layers += residuals(config, narrow, signal)
                layers += [ACTIVATIONS[config.activation](), halving(narrow, wide, signal)]
        self.layers = nn.Sequential(*layers, *residuals(config, widths[-1], signal))

    def forward(self, x: Tensor) -> Tensor:
        grid: Tensor = self.layers(x)
        return grid


class ConvUp(nn.Module):
    """The mirror of ConvDown: [B, width, h, w] -> [B, out_channels, h * 2^d, w * 2^d]; `shape` is the samples'."""

    def __init__(self, config: ConvConfig, out_channels: int, shape: Shape) -> None:
        super().__init__()
        widths, signal = widths_of(config, shape)[::-1], is_signal(shape)
        layers = residuals(config, widths[0], signal)
        if config.kind == "conv":
            for wide, narrow in pairwise((*widths, out_channels)):
                layers += [ACTIVATIONS[config.activation](), doubling(wide, narrow, signal)]
        else:
            for wide, narrow in pairwise((*widths, widths[-1])):
                layers += [ACTIVATIONS[config.activation](), doubling(wide, narrow, signal)]
                layers += residuals(config, narrow, signal)
            layers += [ACTIVATIONS[config.activation](), same_size(widths[-1], out_channels, 3, signal)]
        self.layers = nn.Sequential(*layers)

    def forward(self, grid: Tensor) -> Tensor:
        pixels: Tensor = self.layers(grid)
        return pixels


class Residual(nn.Module):
    """[B, width, h, w] -> the same shape: the input plus two convolutions of it, each after an activation."""

    def __init__(self, width: int, activation: Activation, signal: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ACTIVATIONS[activation](),
            same_size(width, width, 3, signal),
            ACTIVATIONS[activation](),
            same_size(width, width, 1, signal),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


def is_signal(shape: Shape) -> bool:
    """Whether samples of this shape are 1-D. Ask of the samples: a grid of height 1 may come of an image."""
    return shape[1] == 1


def same_size(narrow: int, wide: int, kernel: int, signal: bool) -> nn.Conv2d:
    """Convolution that keeps height and width; `kernel` is odd."""
    pad = kernel // 2
    if signal:
        return nn.Conv2d(narrow, wide, kernel_size=(1, kernel), padding=(0, pad))
    return nn.Conv2d(narrow, wide, kernel_size=kernel, padding=pad)


def halving(narrow: int, wide: int, signal: bool) -> nn.Conv2d:
    """Convolution that halves height and width; of signals, the width."""
    if signal:
        return nn.Conv2d(narrow, wide, kernel_size=(1, 4), stride=(1, 2), padding=(0, 1))
    return nn.Conv2d(narrow, wide, kernel_size=4, stride=2, padding=1)


def doubling(wide: int, narrow: int, signal: bool) -> nn.ConvTranspose2d:
    """Transposed convolution that doubles height and width; of signals, the width."""
    if signal:
        return nn.ConvTranspose2d(wide, narrow, kernel_size=(1, 4), stride=(1, 2), padding=(0, 1))
    return nn.ConvTranspose2d(wide, narrow, kernel_size=4, stride=2, padding=1)


def join_channels(x: Tensor, condition: Tensor | None) -> Tensor:
    """`x` [B, C, H, W] with each number of the condition [B, E] as a further, constant channel: [B, C + E, H, W]."""
    if condition is None:
        return x
    return torch.cat((x, condition[:, :, None, None].expand(-1, -1, *x.shape[2:]).to(x.dtype)), dim=1)


def grid_shape(config: ConvConfig, shape: Shape) -> Shape:
    """[width, h, w] of the convolutional features of samples of this shape.

    Raises:
        ValueError: height or width cannot be halved that often, or not once.
    """
    _, height, width = shape
    factor = 2 ** downsamples_of(config, shape)
    return widths_of(config, shape)[-1], height if is_signal(shape) else height // factor, width // factor


def downsamples_of(config: ConvConfig, shape: Shape) -> int:
    """The configured halvings of samples of this shape, or what their size asks for: see ConvConfig.

    Where the sides cannot be halved as often as their size asks for, it is as often as they can.

    Raises:
        ValueError: height or width (of signals, the width) cannot be halved that often, or not once.
    """
    _, height, width = shape
    sides = math.gcd(width, 0 if is_signal(shape) else height)
    largest = (sides & -sides).bit_length() - 1  # halvings without remainder of every side
    wanted = config.downsamples
    if wanted is None:
        shorter, least = (width, 32) if is_signal(shape) else (min(height, width), 4)
        wanted = min(max((shorter // least).bit_length() - 1, 1), max(largest, 1), 10)
    if wanted > largest:
        both = "a width" if is_signal(shape) else "height and width"
        raise ValueError(
            f"network.downsamples: {wanted} halvings need {both} divisible by {2**wanted}; the images are "
            f"{height} x {width}: set data.image.size to such a size, or choose fewer halvings"
        )
    return wanted


def widths_of(config: ConvConfig, shape: Shape) -> list[int]:
    """Channels after each downsampling of samples of this shape, the first downsampling first."""
    return [config.channels * 2**i for i in range(downsamples_of(config, shape))]


def residuals(config: ConvConfig, width: int, signal: bool) -> list[nn.Module]:
    """As many residual blocks as the configuration wants at one size."""
    return [Residual(width, config.activation, signal) for _ in range(config.residual_blocks)]


def _mlp(widths: tuple[int, ...], activation: Activation) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [Linear(a, b), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def _join(x: Tensor, condition: Tensor | None) -> Tensor:
    return x if condition is None else torch.cat((x, condition), dim=1)
