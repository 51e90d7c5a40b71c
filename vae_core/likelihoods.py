"""p(x | z): what a decoder's output says about pixels. Negative log-likelihoods are [B], in nats, and float32.

Each distribution has `nll(x)` [B]; `mean` [B, C, H, W], the expected pixels; `draw(uniform)`, the pixels at these
quantiles (`uniform` [B, C, H, W] in [0, 1)); and `is_density`: whether its negative log may fall below zero and is
therefore no number of bits.

The x of `nll` may have fewer rows than the distribution, which then holds several draws of all of them in turn: x is
not copied for each.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_core.config import Likelihood, ModelBase
from vae_core.noise import Noise
from vae_core.normal import LOG_2PI
from vae_core.numerics import smooth_bound

START = -2.0  # of log sigma and of the log scale, before training
LEVELS = 255


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Independent binary pixels with these logits, [B, C, H, W]."""

    is_density: ClassVar[bool] = False
    logits: Tensor

    def nll(self, x: Tensor) -> Tensor:
        """-log p(x) of each sample for x in {0, 1}, summed over the pixels; from logits, so finite for any of them."""
        logits = _by_draw(self.logits, x)
        return _total(F.softplus(logits).addcmul_(x, logits, value=-1))

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits.float())

    def draw(self, uniform: Tensor) -> Tensor:
        return (uniform < self.mean).float()


@dataclass(frozen=True, slots=True)
class ContinuousBernoulli:
    """Independent pixels in [0, 1] of density proportional to exp(logit * x), logits [B, C, H, W].

    Source: Loaiza-Ganem & Cunningham, arXiv:1907.06845.
    """

    is_density: ClassVar[bool] = True
    logits: Tensor

    def nll(self, x: Tensor) -> Tensor:
        """-log p(x) of each sample for x in [0, 1], summed over the pixels."""
        logits = _by_draw(self.logits, x)
        size = logits.abs()
        near, large = size < 1, size.clamp_min(1)
        s = torch.where(near, 0.5 * size, 0).square()
        # log(sinh(y) / y), y = logit / 2, by its series: the closed form is a difference of nearly equal numbers there
        series = s * (1 / 6 - s * (1 / 180 - s * (1 / 2835 - s / 37_800)))
        far = size * torch.where(logits > 0, 1 - x, x) + torch.log(-torch.expm1(-large) / large)
        return _total(torch.where(near, logits * (0.5 - x) + series, far))

    @property
    def mean(self) -> Tensor:
        """1 / (1 - exp(-logit)) - 1 / logit, which is not sigmoid(logit)."""
        logits = self.logits.float()
        size = logits.abs()
        near, large = size < 1, size.clamp_min(1)
        s = torch.where(near, size, 0).square()
        series = size * (1 / 12 - s * (1 / 720 - s * (1 / 30_240 - s / 1_209_600)))
        return 0.5 + logits.sign() * torch.where(near, series, -1 / torch.expm1(-large) - 1 / large - 0.5)

    def draw(self, uniform: Tensor) -> Tensor:
        logits = self.logits.float()
        near, large = logits.abs() < 1e-3, logits.abs().clamp_min(1e-3)
        # The quantile function for a negative logit; for a positive one, one minus that of the mirrored pixel.
        below = torch.where(logits < 0, uniform, 1 - uniform)
        mirrored = torch.log1p(below * torch.expm1(-large)) / -large
        far = torch.where(logits < 0, mirrored, 1 - mirrored).clamp(0, 1)
        return torch.where(near, uniform + 0.5 * logits * uniform * (1 - uniform), far)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Independent normal pixels around `mean` [B, C, H, W] with sigma exp(log_sigma), one or [B, C, H, W].

    A density over pixels in [0, 1]: its negative log can fall below zero and is no number of bits.
    """

    is_density: ClassVar[bool] = True
    mean: Tensor
    log_sigma: Tensor

    def nll(self, x: Tensor) -> Tensor:
        """-log p(x) of each sample, summed over the pixels."""
        log_sigma = self.log_sigma.float() if self.log_sigma.dim() == 0 else _by_draw(self.log_sigma, x)
        scaled = (x - _by_draw(self.mean, x)) * torch.exp(-log_sigma)
        return _total(0.5 * scaled.square() + log_sigma + 0.5 * LOG_2PI)

    def draw(self, uniform: Tensor) -> Tensor:
        quantile: Tensor = torch.special.ndtri(_inside(uniform))
        return self.mean.float() + self.log_sigma.float().exp() * quantile


@dataclass(frozen=True, slots=True)
class DiscretisedLogistic:
    """Independent pixels of 256 levels: the mass of a logistic distribution within half a level of each.

    The outermost levels take the tails. Location and log scale [B, C, H, W] are in units of the range 0 to 1.
    Source: Salimans et al., arXiv:1701.05517, equation 2 with one component.
    """

    is_density: ClassVar[bool] = False
    location: Tensor
    log_scale: Tensor

    def nll(self, x: Tensor) -> Tensor:
        """-log p(x) of each sample for x in {0, 1 / 255, ..., 1}, summed over the pixels."""
        per_unit, half = torch.exp(-_by_draw(self.log_scale, x)), 0.5 / LEVELS
        distance = x - _by_draw(self.location, x)
        below = F.logsigmoid((distance + half) * per_unit)  # log of the mass up to the upper edge of the level
        above = F.logsigmoid((half - distance) * per_unit)  # and of that from its lower edge on
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): no difference of nearly equal numbers
        middle = below + above + torch.log(-torch.expm1(-per_unit / LEVELS))
        log_mass = torch.where(x < half, below, torch.where(x > 1 - half, above, middle))
        return -_total(log_mass)

    @property
    def mean(self) -> Tensor:
        """That of the logistic clipped to [0, 1]: the pixels' own to within half a level."""
        location, scale = self.location.float(), self.log_scale.float().exp()
        return (scale * (F.softplus(location / scale) - F.softplus((location - 1) / scale))).clamp(0, 1)

    def draw(self, uniform: Tensor) -> Tensor:
        point = self.location.float() + self.log_scale.float().exp() * torch.logit(_inside(uniform))
        return (point * LEVELS).round().clamp(0, LEVELS) / LEVELS


Pixels: TypeAlias = Bernoulli | ContinuousBernoulli | Gaussian | DiscretisedLogistic
OF_LIKELIHOOD: Mapping[Likelihood, type[Pixels]] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "discretised_logistic": DiscretisedLogistic,
}


class PixelHead(nn.Module):
    """Turns a decoder's raw output [B, raw_channels, H, W] into the distribution of the pixels [B, channels, H, W].

    Sigma that is learned or the decoder's own, and the scale of the logistic, stay above e^-6 and e^-7 of the range 0
    to 1 (`smooth_bound`): a pixel that never changes would else drive the density to infinity.
    """

    fixed_log_sigma: Tensor

    def __init__(self, config: ModelBase, channels: int) -> None:
        super().__init__()
        self.likelihood, self.sigma = config.likelihood, config.sigma
        two = self.likelihood == "discretised_logistic" or (self.likelihood, self.sigma) == ("gaussian", "per_pixel")
        self.raw_channels = channels * (2 if two else 1)
        if self.likelihood == "gaussian" and self.sigma == "learned":
            self.log_sigma = nn.Parameter(torch.tensor(START))
        elif self.likelihood == "gaussian" and not isinstance(self.sigma, str):
            self.register_buffer("fixed_log_sigma", torch.tensor(math.log(self.sigma)), persistent=False)

    def forward(self, raw: Tensor) -> Pixels:
        match self.likelihood:
            case "bernoulli":
                return Bernoulli(raw)
            case "continuous_bernoulli":
                return ContinuousBernoulli(raw)
            case "gaussian":
                return self._gaussian(raw)
            case "discretised_logistic":
                location, log_scale = raw.float().chunk(2, dim=1)
                return DiscretisedLogistic(location + 0.5, smooth_bound(log_scale + START, -6.0, 5.0, 1.0))
            case other:
                assert_never(other)

    def _gaussian(self, raw: Tensor) -> Gaussian:
        if self.sigma == "per_pixel":
            mean, log_sigma = raw.float().chunk(2, dim=1)
            return Gaussian(torch.sigmoid(mean), smooth_bound(log_sigma + START, -5.0, 5.0, 1.0))
        if self.sigma == "learned":
            return Gaussian(torch.sigmoid(raw), smooth_bound(self.log_sigma, -5.0, 5.0, 1.0))
        return Gaussian(torch.sigmoid(raw), self.fixed_log_sigma)


def observe(images: Tensor, likelihood: Likelihood, noise: Noise) -> Tensor:
    """The pixels that a likelihood speaks of: float32, same shape as the uint8 `images`.

    `bernoulli`: each pixel is drawn as 0 or 1 with its intensity as probability, anew at each step (dynamic
    binarisation: a Bernoulli likelihood of grey values would not be a likelihood). All others: intensities in [0, 1].
    """
    return noise.binary("binarise", images) if likelihood == "bernoulli" else images.to(torch.float32) / LEVELS


def _by_draw(parameters: Tensor, x: Tensor) -> Tensor:
    """Parameters [S x B, C, H, W] of S draws of the B rows of x, float32 [S, B, C, H, W]."""
    by_draw: Tensor = parameters.float().unflatten(0, (len(parameters) // max(1, len(x)), len(x)))
    return by_draw


def _total(each: Tensor) -> Tensor:
    """[S, B, C, H, W] -> [S x B]."""
    return each.flatten(2).sum(2).flatten()


def _inside(uniform: Tensor) -> Tensor:
    """Without 0 and 1, whose quantiles are infinite."""
    return uniform.float().clamp(2**-25, 1 - 2**-24)
