"""Deep hierarchical VAE: groups of latent maps, drawn from the coarsest scale down to the finest.

The encoder goes up once and keeps its features of every scale. Prior and posterior of a group both see what the
groups above it drew; the posterior is given relative to the prior. Without batch normalisation: what a row gives does
not depend on its neighbours.

Source: Vahdat & Kautz, arXiv:2007.03898; without normalisation as Child, arXiv:2011.10650.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vae_core.config import ConvConfig, DataSpec, HierarchicalConfig
from vae_core.likelihoods import PixelHead, Pixels
from vae_core.models.base import ContinuousModel, Inputs, repeated
from vae_core.networks import (
    ACTIVATIONS,
    Residual,
    doubling,
    grid_shape,
    halving,
    is_signal,
    join_channels,
    same_size,
    widths_of,
)
from vae_core.noise import Noise
from vae_core.normal import DiagonalNormal
from vae_core.numerics import smooth_bound


@dataclass(frozen=True, slots=True)
class HierarchicalOutput:
    """Of each group, the top one first: q(z_l | x, z_<l), p(z_l | z_<l) and the draw, [B, latent_channels, h, w]."""

    posteriors: tuple[DiagonalNormal, ...]
    priors: tuple[DiagonalNormal, ...]
    latents: tuple[Tensor, ...]
    pixels: Pixels


class Group(nn.Module):
    """One group of latents: its prior, its posterior, and how its draw enters the decoder's state [B, width, h, w].

    `above`: width of the scale above where this group is the first of its scale, whose state it doubles in size.
    """

    def __init__(self, config: HierarchicalConfig, width: int, above: int | None, signal: bool) -> None:
        super().__init__()
        network, latents = config.network, config.latent_channels
        self.enter = nn.Identity() if above is None else doubling(above, width, signal)
        self.to_prior = _head(network, width, width, latents, signal)
        self.to_posterior = _head(network, 2 * width, width, latents, signal)
        self.merge = same_size(latents, width, 1, signal)
        self.cells = nn.Sequential(*_cells(network, width, signal))
        for parameter in self.to_prior[-1].parameters():
            nn.init.zeros_(parameter)  # the prior starts at N(0, I)

    def prior(self, state: Tensor) -> DiagonalNormal:
        mean, log_var = smooth_bound(self.to_prior(state)).chunk(2, dim=1)
        return DiagonalNormal(mean, log_var)

    def posterior(self, state: Tensor, features: Tensor, prior: DiagonalNormal) -> DiagonalNormal:
        """Mean mu_p + delta_mu and standard deviation sigma_p x delta_sigma (arXiv:2007.03898, section 3.2)."""
        seen = torch.cat((state, features), dim=1)
        mean, log_var = smooth_bound(self.to_posterior(seen)).chunk(2, dim=1)
        return DiagonalNormal(prior.mean + mean, prior.log_var + log_var)

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        """The state after the draw z."""
        after: Tensor = self.cells(state + self.merge(z))
        return after


class Hierarchical(ContinuousModel):
    """`latent_dim` is the size of all groups together; a latent [B, latent_dim] holds them flat, the top one first."""

    def __init__(self, config: HierarchicalConfig, data: DataSpec) -> None:
        super().__init__(config, data)
        network, signal = config.network, is_signal(data.shape)
        widths = widths_of(network, data.shape)
        self.head = PixelHead(config, data.channels)
        self.up = _encoder(network, data.channels + self.condition_dim, widths, signal)
        self.top = nn.Parameter(torch.zeros(1, *grid_shape(network, data.shape)))
        self.join = same_size(widths[-1] + self.condition_dim, widths[-1], 1, signal)
        self.groups = nn.ModuleList(
            Group(config, width, above if i == 0 else None, signal)
            for width, above in zip(widths[::-1], (None, *widths[:0:-1]), strict=True)
            for i in range(config.groups)
        )
        self.out = _to_pixels(network, widths[0], self.head.raw_channels, signal)
        self.grids = _grids(config, data)
        self.sizes = [math.prod(grid) for grid in self.grids]
        self.latent_dim = sum(self.sizes)

    def draws(self, noise: Noise) -> dict[str, Tensor]:
        return {"posterior": noise.normal("posterior", self.latent_dim)}

    def forward(self, inputs: Inputs) -> HierarchicalOutput:
        """Encode, draw each group from its posterior, decode."""
        return self.infer(self.encode(inputs.x, inputs.condition), inputs.condition, inputs.draws["posterior"])

    def encode(self, x: Tensor, c: Tensor | None) -> tuple[Tensor, ...]:
        """The encoder's features [B, width, h, w] of each scale, the coarsest first: what the posteriors see of x."""
        features, state = [], join_channels(x, c)
        for stage in self.up:
            state = stage(state)
            features.append(state)
        return tuple(features[::-1])

    def infer(self, features: tuple[Tensor, ...], c: Tensor | None, epsilon: Tensor) -> HierarchicalOutput:
        """Draw the groups from the top down, each from its posterior, with the noise epsilon [B, latent_dim]."""
        posteriors, priors, latents = [], [], []
        state = self._start(len(epsilon), c)
        for i, (group, noise) in enumerate(self._walk(epsilon)):
            state = group.enter(state)
            prior = group.prior(state)
            posterior = group.posterior(state, features[i // self.config.groups], prior)
            z = posterior.draw(noise)
            state = group(state, z)
            posteriors.append(posterior)
            priors.append(prior)
            latents.append(z)
        return HierarchicalOutput(tuple(posteriors), tuple(priors), tuple(latents), self._pixels(state))

    def represent(self, x: Tensor, c: Tensor | None) -> Tensor:
        """[B, latent_dim]: each group's posterior mean given the means of those above it."""
        none = x.new_zeros(len(x), self.latent_dim)
        return torch.cat([z.flatten(1) for z in self.infer(self.encode(x, c), c, none).latents], dim=1)

    def decode(self, latent: Tensor, c: Tensor | None) -> Pixels:
        state = self._start(len(latent), c)
        for group, z in self._walk(latent):
            state = group(group.enter(state), z)
        return self._pixels(state)

    def from_prior(self, epsilon: Tensor, c: Tensor | None) -> Tensor:
        """Ancestral draws [B, latent_dim]: each group from its prior given the groups above."""
        latents, state = [], self._start(len(epsilon), c)
        for group, noise in self._walk(epsilon):
            state = group.enter(state)
            z = group.prior(state).draw(noise)
            state = group(state, z)
            latents.append(z.flatten(1))
        return torch.cat(latents, dim=1)

    def importance_noise(self, noise: Noise, purpose: str, samples: int) -> Tensor:
        return noise.normal(purpose, samples, self.latent_dim).movedim(1, 0)

    def log_weight(self, x: Tensor, c: Tensor | None, q: tuple[Tensor, ...], epsilon: Tensor) -> Tensor:
        """log p(x, z | c) - log q(z | x, c), [S, B], of the draws that epsilon [S, B, latent_dim] gives."""
        samples, flat = len(epsilon), epsilon.flatten(0, 1)
        output = self.infer(tuple(f.repeat(samples, 1, 1, 1) for f in q), repeated(c, samples), flat)
        log_likelihood = -output.pixels.nll(x)
        groups = zip(output.priors, output.posteriors, output.latents, self._walk(flat), strict=True)
        ratios = [_log_ratio(prior, posterior, z, noise) for prior, posterior, z, (_, noise) in groups]
        return (log_likelihood + torch.stack(ratios).sum(0)).view(epsilon.shape[:2])

    def _start(self, rows: int, c: Tensor | None) -> Tensor:
        state: Tensor = self.join(join_channels(self.top.expand(rows, -1, -1, -1), c))
        return state

    def _walk(self, flat: Tensor) -> Iterator[tuple[Group, Tensor]]:
        """Each group with its part of [B, latent_dim] as a map."""
        groups = cast(Iterable[Group], self.groups)
        for group, part, grid in zip(groups, flat.split(self.sizes, dim=1), self.grids, strict=True):
            yield group, part.unflatten(1, grid)

    def _pixels(self, state: Tensor) -> Pixels:
        pixels: Pixels = self.head(self.out(state))
        return pixels


def _log_ratio(prior: DiagonalNormal, posterior: DiagonalNormal, z: Tensor, epsilon: Tensor) -> Tensor:
    """log p(z) - log q(z), [B]; log q by the noise behind z, whose square is exact however small the variance."""
    log_q = epsilon.square() + posterior.log_var
    log_p = (z - prior.mean).square() * torch.exp(-prior.log_var) + prior.log_var
    return 0.5 * (log_q - log_p).flatten(1).sum(1)


def _encoder(config: ConvConfig, channels: int, widths: list[int], signal: bool) -> nn.ModuleList:
    """One stage a scale, the finest first; each halves the size."""
    stem = [same_size(channels, widths[0], 3, signal), *_full_size_cells(config, widths[0], signal)]
    stages = []
    for narrow, wide in zip((widths[0], *widths), widths, strict=False):
        stages.append(nn.Sequential(*stem, halving(narrow, wide, signal), *_cells(config, wide, signal)))
        stem = []
    return nn.ModuleList(stages)


def _to_pixels(config: ConvConfig, width: int, channels: int, signal: bool) -> nn.Sequential:
    act = ACTIVATIONS[config.activation]
    cells = _full_size_cells(config, width, signal)
    return nn.Sequential(doubling(width, width, signal), *cells, act(), same_size(width, channels, 3, signal))


def _head(config: ConvConfig, inputs: int, width: int, latents: int, signal: bool) -> nn.Sequential:
    """Mean and log-variance of a group's maps, as 2 x latents channels."""
    act = ACTIVATIONS[config.activation]
    body = (same_size(inputs, width, 1, signal), Residual(width, config.activation, signal), act())
    return nn.Sequential(*body, same_size(width, 2 * latents, 1, signal))


def _cells(config: ConvConfig, width: int, signal: bool) -> list[nn.Module]:
    """At least one: a group without would pass its draw on linearly."""
    return [Residual(width, config.activation, signal) for _ in range(max(1, config.residual_blocks))]


def _full_size_cells(config: ConvConfig, width: int, signal: bool) -> list[nn.Module]:
    return _cells(config, width, signal) if config.kind == "residual" else []


def _grids(config: HierarchicalConfig, data: DataSpec) -> list[tuple[int, int, int]]:
    """[latent_channels, h, w] of each group, the top one first."""
    _, height, width = grid_shape(config.network, data.shape)
    grids = []
    for scale in range(len(widths_of(config.network, data.shape))):
        rows = height if is_signal(data.shape) else height * 2**scale
        grids += [(config.latent_channels, rows, width * 2**scale)] * config.groups
    return grids
