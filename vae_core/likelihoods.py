"""p(x | z): what a decoder's output says about pixels. Negative log-likelihoods are [B], in nats, and float32."""

import math
from dataclasses import dataclass
from typing import TypeAlias, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_core.config import Likelihood
from vae_core.noise import Noise

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Independent binary pixels with these logits, [B, C, H, W]."""

    logits: Tensor

    def nll(self, x: Tensor) -> Tensor:
        """-log p(x) of each sample for x in {0, 1}, summed over the pixels; from logits, so finite for any of them."""
        logits = self.logits.float()
        return F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").flatten(1).sum(1)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Independent normal pixels around `mean` [B, C, H, W] with one sigma, exp(log_sigma).

    A density over pixels in [0, 1]: its negative log can fall below zero and is no number of bits.
    """

    mean: Tensor
    log_sigma: Tensor

    def nll(self, x: Tensor) -> Tensor:
        """-log p(x) of each sample, summed over the pixels."""
        log_sigma = self.log_sigma.float()
        scaled = (x - self.mean.float()) * torch.exp(-log_sigma)
        return (0.5 * scaled.square() + log_sigma + 0.5 * LOG_2PI).flatten(1).sum(1)


Pixels: TypeAlias = Bernoulli | Gaussian


class PixelHead(nn.Module):
    """Turns a decoder's raw output [B, C, H, W] into the distribution of the pixels."""

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.likelihood = likelihood
        if likelihood == "gaussian":
            self.log_sigma = nn.Parameter(torch.tensor(-2.0))

    def forward(self, raw: Tensor) -> Pixels:
        match self.likelihood:
            case "bernoulli":
                return Bernoulli(raw)
            case "gaussian":
                return Gaussian(torch.sigmoid(raw), self.log_sigma)
            case other:
                assert_never(other)


def observe(images: Tensor, likelihood: Likelihood, noise: Noise) -> Tensor:
    """The pixels that a likelihood speaks of: float32, same shape as the uint8 `images`.

    `bernoulli`: each pixel is drawn as 0 or 1 with its intensity as probability, anew at each step (dynamic
    binarisation: a Bernoulli likelihood of grey values would not be a likelihood). `gaussian`: intensities in [0, 1].
    """
    intensities = images.to(torch.float32) / 255
    match likelihood:
        case "bernoulli":
            return (noise.uniform("binarise", *images.shape[1:]) < intensities).to(torch.float32)
        case "gaussian":
            return intensities
        case other:
            assert_never(other)
