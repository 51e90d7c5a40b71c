"""What a trained model can show: reconstructions, samples, paths between images, traversals, style transfer.

Every function says whether it returns means or draws: `pixels="mean"` is E[x | z] in [0, 1], `"draw"` one draw of the
pixels from p(x | z). Random numbers come from `seed` alone.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias, assert_never

import torch
from torch import Tensor

from vae_core.likelihoods import Pixels
from vae_core.models import CodeModel, ContinuousModel, HasPrior, Model
from vae_core.models.base import Codes, repeated
from vae_core.models.categorical import Categorical

Shown: TypeAlias = Literal["mean", "draw"]
Path: TypeAlias = Literal["linear", "spherical"]


class DrawsCodes(Protocol):
    """A prior over the codes of a model."""

    def sample(self, count: int, c: Tensor | None, *, generator: torch.Generator, temperature: float = 1.0) -> Codes:
        """Codes of `count` images, one tensor [count, h, w] a level, the top level first."""
        ...


@torch.no_grad()
def reconstruct(model: Model, x: Tensor, c: Tensor | None = None, *, pixels: Shown = "mean", seed: int = 0) -> Tensor:
    """[B, C, H, W] of observed pixels x, through the posterior's mean or the nearest codes: no draw of the latent."""
    return _shown(model.decode(model.represent(x, c), c), pixels, _generator(seed))


def can_sample(model: Model, prior: DrawsCodes | None = None) -> bool:
    """Whether there is a prior to draw from: the model's own, or `prior` over its codes."""
    return isinstance(model, HasPrior | Categorical) or (prior is not None and isinstance(model, CodeModel))


@torch.no_grad()
def sample(
    model: Model,
    count: int,
    c: Tensor | None = None,
    *,
    seed: int,
    temperature: float = 1.0,
    pixels: Shown = "mean",
    prior: DrawsCodes | None = None,
) -> Tensor:
    """[count, C, H, W] from the prior; with a condition c [count, E], samples of it.

    Args:
        temperature: scales the standard deviation of Gaussian latents, or divides the logits of a prior over codes.
        prior: of a model of codes; a categorical model has a uniform one of its own.

    Raises:
        ValueError: the model has no prior, or needs one that was not given.
    """
    generator, device = _generator(seed), next(model.parameters()).device
    if isinstance(model, HasPrior):
        epsilon = torch.randn(count, model.latent_dim, generator=generator).to(device)
        latent = model.from_prior(temperature * epsilon, c)
        return _shown(model.decode(latent, c), pixels, generator)
    if not isinstance(model, CodeModel):
        raise ValueError(f"a model of kind {model.config.kind} has no prior to draw from")
    if prior is not None:
        of_codes = int(torch.randint(2**62, (), generator=generator))  # not `seed`: it draws the pixels
        on_device = torch.Generator(device).manual_seed(of_codes)
        codes = prior.sample(count, c, generator=on_device, temperature=temperature)
    elif isinstance(model, Categorical):
        codes = model.prior_codes(torch.rand(count, model.config.variables, generator=generator).to(device))
    else:
        raise ValueError(f"samples of a model of kind {model.config.kind} need a prior over its codes")
    return _shown(model.decode(codes, c), pixels, generator)


@torch.no_grad()
def interpolate(
    model: Model, start: Tensor, end: Tensor, steps: int, c: Tensor | None = None, *, path: Path = "linear"
) -> Tensor:
    """[B, steps, C, H, W] means along the path between the codes of two images each, both ends included.

    Args:
        path: of continuous latents; `spherical` keeps to the shell in which a Gaussian of many dimensions lies. A
            model of codes goes along the straight line between code vectors, or changes code by code.
    """
    fractions = torch.linspace(0, 1, steps).tolist()
    if isinstance(model, CodeModel):
        codes = model.represent(start, c), model.represent(end, c)
        points = [model.between(*codes, fraction) for fraction in fractions]
        return torch.stack([model.decode(point, c).mean for point in points], dim=1)
    assert isinstance(model, ContinuousModel)
    first, last = model.represent(start, c), model.represent(end, c)
    between = torch.lerp if path == "linear" else slerp
    return torch.stack([model.decode(between(first, last, f), c).mean for f in fractions], dim=1)


@torch.no_grad()
def traverse(
    model: ContinuousModel, z: Tensor, values: Tensor, c: Tensor | None = None, *, dims: Sequence[int] | None = None
) -> Tensor:
    """[D, V, C, H, W] means: the latent z [1, latent_dim] with each of D dimensions in turn set to `values` [V].

    Args:
        c: [1, E], or None.
        dims: which dimensions; None: all.
    """
    chosen, count = list(range(model.latent_dim) if dims is None else dims), len(values)
    grid = z.repeat(len(chosen) * count, 1).unflatten(0, (len(chosen), count))
    grid[torch.arange(len(chosen)), :, chosen] = values
    means = model.decode(grid.flatten(0, 1), repeated(c, len(chosen) * count)).mean
    return means.view(len(chosen), count, *means.shape[1:])


@torch.no_grad()
def transfer_style(model: Model, x: Tensor, c: Tensor, other: Tensor) -> Tensor:
    """[B, C, H, W] means: images x encoded as what they are, c, and decoded as `other`, both [B, E].

    What the condition does not explain (slant, stroke width) lies in the code and stays.
    """
    return model.decode(model.represent(x, c), other).mean


def slerp(start: Tensor, end: Tensor, fraction: float) -> Tensor:
    """The point at `fraction` of the great arc between vectors [..., L], with lengths interpolated too.

    Source: Shoemake, SIGGRAPH 1985; White, arXiv:1609.04468.
    """
    lengths = start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True)
    one, two = start / lengths[0].clamp_min(1e-12), end / lengths[1].clamp_min(1e-12)
    angle = (one * two).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    arc = (torch.sin((1 - fraction) * angle) * one + torch.sin(fraction * angle) * two) / sine.clamp_min(1e-12)
    direction = torch.where(sine < 1e-6, torch.lerp(one, two, fraction), arc)  # nearly parallel: the line is the arc
    return direction * torch.lerp(*lengths, fraction)


def _shown(pixels: Pixels, shown: Shown, generator: torch.Generator) -> Tensor:
    match shown:
        case "mean":
            return pixels.mean
        case "draw":
            mean = pixels.mean
            return pixels.draw(torch.rand(mean.shape, generator=generator).to(mean.device))
        case other:
            assert_never(other)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
