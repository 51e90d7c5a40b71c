"""Importance-weighted estimate of -log p(x), how far to trust it, and its unit."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_core.distributed import all_reduce_sum
from vae_core.models.base import HasLikelihood
from vae_core.noise import Noise

DRAWS = 10  # of one call of the noise; fixed, so that neither the chunk nor the batch changes what is drawn
CPU_NUMBERS = 2**21  # pixels of a pass: what the caches of a core or two hold
GPU_NUMBERS = 2**25  # pixels of a pass: enough to fill a GPU, little of its memory
FEW_EFFECTIVE_SAMPLES = 10.0  # below, the estimate of an image rests on a handful of draws


@dataclass(frozen=True, slots=True)
class LikelihoodEstimate:
    """-log p(x) of each image and the evidence behind it.

    Attributes:
        nll: float64 [B], nats; an upper bound in expectation.
        effective_samples: float64 [B], (sum of weights)^2 / sum of squared weights, from 1 to `samples`; few mean that
            the posterior misses p(z | x) and that the bound is loose.
        samples: draws an image.
    """

    nll: Tensor
    effective_samples: Tensor
    samples: int


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of the batch, with their posterior."""

    rows: slice
    x: Tensor
    condition: Tensor | None
    posterior: Any


@torch.no_grad()
def importance_weighted(
    model: HasLikelihood, x: Tensor, c: Tensor | None, *, noise: Noise, samples: int, chunk: int | None = None
) -> LikelihoodEstimate:
    """-log (1/k) sum_i p(x, z_i) / q(z_i | x) with k = `samples` draws from the posterior, in nats.

    The sums are carried as running log-sum-exps. An image's draws, and so its estimate but for rounding, depend on its
    place in the noise alone: not on the chunk or the rows beside it. The first draws of many are those of few.

    Args:
        x: [B, C, H, W] observed pixels.
        c: [B, E] condition, or None.
        chunk: images x draws that are decoded at once, which bounds the memory; None: by the device and the image.

    Raises:
        ValueError: no samples.

    Source: Burda et al., arXiv:1509.00519, equation 8; effective sample size: Kong, 1992.
    """
    if samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    _keep_freed_memory()
    at_once = chunk or default_chunk(x)
    images = min(len(x), max(1, at_once // DRAWS))
    draws = max(1, at_once // max(images, 1))
    parts = [_part(model, x, c, slice(start, start + images)) for start in range(0, len(x), max(images, 1))]
    log_sums = torch.full((2, len(x)), -math.inf, dtype=torch.float64, device=x.device)  # of the weights, their squares
    for epsilon in _noise(model, noise, samples, at_once=max(DRAWS, draws // DRAWS * DRAWS)):
        for part in parts:
            for some in epsilon[:, part.rows].split(draws):
                log_weight = model.log_weight(part.x, part.condition, part.posterior, some).double()
                more = torch.stack((log_weight.logsumexp(0), (2 * log_weight).logsumexp(0)))
                log_sums[:, part.rows] = torch.logaddexp(log_sums[:, part.rows], more)
    total, squares = log_sums
    return LikelihoodEstimate(math.log(samples) - total, torch.exp(2 * total - squares), samples)


def default_chunk(x: Tensor) -> int:
    """Images x draws to decode at once: passes that stay in the caches of a CPU, or that fill a GPU."""
    numbers = GPU_NUMBERS if x.is_cuda else CPU_NUMBERS
    return max(1, numbers // max(1, x[0].numel() if len(x) else 1))


def bits_per_dimension(nats: float, dimensions: int) -> float:
    """Bits a pixel and channel of a negative log-likelihood in nats a sample.

    Only for likelihoods of discrete pixels: a density (`Pixels.is_density`) has no number of bits.
    """
    return nats / (dimensions * math.log(2))


class LikelihoodSummary:
    """Mean likelihood of a split with its standard error over the images; sums, reduced over ranks, in float64."""

    def __init__(self) -> None:
        self.sums = torch.zeros(5, dtype=torch.float64)  # weight, nll, nll^2, effective samples, images with few
        self.samples = 0

    def add(self, estimate: LikelihoodEstimate, weight: Tensor) -> None:
        """weight: [B]; rows of weight 0 do not count, whatever they hold."""
        nll, effective = estimate.nll, estimate.effective_samples
        columns = torch.stack((torch.ones_like(nll), nll, nll.square(), effective, _few(estimate)))
        counted = torch.where(weight > 0, columns, 0.0) * weight
        self.sums = self.sums.to(counted.device) + counted.sum(1)
        self.samples = estimate.samples

    def compute(self) -> dict[str, float]:
        """The figures over all ranks; every rank must call it. Empty when nothing was added anywhere.

        nll_nats, nll_standard_error_nats: over the images, of the split as a sample of images.
        nll_samples: draws an image. effective_samples: mean over the images.
        few_effective_samples_fraction: of the images, those with fewer than FEW_EFFECTIVE_SAMPLES.
        """
        rows, *sums = all_reduce_sum(self.sums.clone()).tolist()
        if rows == 0:
            return {}
        nll, squares, effective, few = (total / rows for total in sums)
        return {
            "nll_nats": nll,
            "nll_standard_error_nats": math.sqrt(max(0.0, squares - nll**2) / rows),
            "nll_samples": self.samples,
            "effective_samples": effective,
            "few_effective_samples_fraction": few,
        }


def _few(estimate: LikelihoodEstimate) -> Tensor:
    return (estimate.effective_samples < FEW_EFFECTIVE_SAMPLES).double()


def _keep_freed_memory() -> None:
    """Spare each pass the page faults of memory that the C library returned to the system after the one before.

    glibc raises its threshold for that to what was once freed, up to 32 MiB; unused, this costs nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _part(model: HasLikelihood, x: Tensor, c: Tensor | None, rows: slice) -> _Part:
    known = None if c is None else c[rows]
    return _Part(rows, x[rows], known, model.encode(x[rows], known))


def _noise(model: HasLikelihood, noise: Noise, samples: int, *, at_once: int) -> Iterator[Tensor]:
    """[at most `at_once`, B, ...] until there were `samples`."""
    for first in range(0, samples, at_once):
        stop = min(samples, first + at_once)
        blocks = [model.importance_noise(noise, f"importance/{start}", DRAWS) for start in range(first, stop, DRAWS)]
        yield (blocks[0] if len(blocks) == 1 else torch.cat(blocks))[: stop - first]
