"""What the figures of a trained model say is wrong with it, in words, and what to change.

Reads the names that the other metrics give; a figure that is not there is not judged.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_core.config import IWAEConfig, ModelConfig, VAEConfig, VQVAE2Config, VQVAEConfig
from vae_core.distributed import all_reduce_sum
from vae_core.schedules import value_at

COLLAPSED_NATS = math.log(2)  # less than one bit: the code tells two groups of images apart at best
FEW_ACTIVE_FRACTION = 0.1  # a sound VAE of 50 dimensions keeps 19 on MNIST (arXiv:1509.00519); a tenth is a tail
OVER_REGULARISED_FRACTION = 0.5  # with beta above 1, which is what switches dimensions off
MISMATCH_NATS = 1.0  # of the moments of q(z) to the prior's, over all dimensions; a sound VAE has about 0.01 each
MISMATCH_OF_RATE = 0.1
AGGREGATE_OF_RATE = 0.5  # more of the rate lost to the prior than spent on the image
SATURATED = 0.9  # of log(rows): beyond, the split of the rate tells of the rows and not of the model
BLURRED_RATIO = 0.5  # half of the fine detail gone, which an eye sees; mean reconstructions always lose some
SIGMA_FACTOR = 4.0  # of the variance: as wrong as beta 4 or beta 1/4
GAP_NATS, GAP_OF_RATE = 1.0, 0.1  # a nat is what families of models on MNIST differ by (arXiv:1509.00519, table 1)
FEW_EFFECTIVE_FRACTION = 0.1  # of the images, whose estimates rest on a handful of draws
USED_FRACTION = 0.5
PERPLEXITY_FRACTION = 0.1  # of the codes: below, a codebook of a tenth of the size would have served


@dataclass(frozen=True, slots=True)
class Finding:
    """A name that stays the same, the evidence in words, and the remedy in terms of the configuration."""

    name: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.evidence} {self.remedy}"


def diagnose(figures: Mapping[str, float], config: ModelConfig) -> list[Finding]:
    """What stands out in the figures of a model with this configuration, the gravest first; empty: nothing."""
    unfit = sorted(name for name, value in figures.items() if not math.isfinite(value))
    found = [
        Finding("not_finite", f"Not finite: {', '.join(unfit)}.", "Lower train.learning_rate or train.max_grad_norm.")
    ] * bool(unfit)
    sound = {name: value for name, value in figures.items() if name not in unfit}
    found += [*_collapse(sound, config), *_codebook(sound, config), *_prior(sound, config), *_sigma(sound, config)]
    return [*found, *_blur(sound, config), *_inference(sound)]


def _collapse(figures: Mapping[str, float], config: ModelConfig) -> Iterator[Finding]:
    if isinstance(config, VQVAEConfig | VQVAE2Config):
        return
    rate, active = figures.get("rate_nats"), figures.get("active_units")
    if rate is not None and rate < COLLAPSED_NATS:
        yield Finding(
            "collapsed_posterior",
            f"The code is ignored: the rate is {rate:.2f} nats, less than one bit an image.",
            _wake(config),
        )
        return
    if active is None or not isinstance(config, VAEConfig | IWAEConfig):
        return
    share, beta = active / config.latent_dim, _final_beta(config)
    of = f"{active:.0f} of {config.latent_dim} latent dimensions vary with the image"
    if beta > 1 and share < OVER_REGULARISED_FRACTION:
        yield Finding(
            "over_regularised", f"Only {of}, at beta {beta:g}.", "Lower beta, unless few dimensions are the aim."
        )
    elif share < FEW_ACTIVE_FRACTION:
        yield Finding(
            "few_active_units",
            f"Only {of}.",
            f"{_wake(config)} Where the likelihood is good already, lower latent_dim.",
        )


def _codebook(figures: Mapping[str, float], config: ModelConfig) -> Iterator[Finding]:
    if not isinstance(config, VQVAEConfig | VQVAE2Config):
        return
    remedy = "Lower num_codes or code_dim, raise restart_below, or set start: kmeans or codebook: fsq."
    if config.codebook == "fsq":
        remedy = "Lower num_codes: the codebook of fsq is fixed, and the encoder reaches only part of it."
    used = figures.get("codebook_used_fraction", 1.0)
    perplexity = figures.get("codebook_perplexity", math.inf)
    if used < USED_FRACTION:
        yield Finding("dead_codes", f"Only {used:.0%} of the {config.num_codes} codes occur.", remedy)
    elif perplexity < PERPLEXITY_FRACTION * config.num_codes:
        evidence = f"Few codes do the work: perplexity {perplexity:.1f} of {config.num_codes}."
        yield Finding("uneven_codes", evidence, remedy)


def _prior(figures: Mapping[str, float], config: ModelConfig) -> Iterator[Finding]:
    rate, moments = figures.get("rate_nats", math.inf), figures.get("marginal_mismatch_nats", 0.0)
    aggregate, information = figures.get("aggregate_kl_nats", 0.0), figures.get("mutual_information_nats", math.inf)
    unsaturated = information < SATURATED * figures.get("mutual_information_limit_nats", math.inf)
    apart = moments > max(MISMATCH_NATS, MISMATCH_OF_RATE * rate)
    if apart or (unsaturated and aggregate > max(MISMATCH_NATS, AGGREGATE_OF_RATE * rate)):
        nats = moments if apart else aggregate
        yield Finding(
            "under_regularised",
            f"Codes of images lie off the prior by {nats:.1f} of the {rate:.1f} nats of the rate: what is drawn from "
            "the prior will look worse than reconstructions.",
            ("Raise beta towards 1, or sample" if _has_beta(config) else "Sample")
            + " from a prior fitted to the codes.",
        )


def _sigma(figures: Mapping[str, float], config: ModelConfig) -> Iterator[Finding]:
    mse = figures.get("mse")
    if mse is None or mse <= 0 or config.likelihood != "gaussian" or isinstance(config.sigma, str):
        return
    ratio = config.sigma**2 / mse
    if not 1 / SIGMA_FACTOR <= ratio <= SIGMA_FACTOR:
        effect = "which blurs" if ratio > 1 else "which leaves the code off the prior"
        yield Finding(
            "sigma_mismatch",
            f"sigma {config.sigma:g} claims {ratio:.3g} times the squared error that there is, {effect}.",
            f"Set sigma to learned, or to about {math.sqrt(mse):.2g}.",
        )


def _blur(figures: Mapping[str, float], config: ModelConfig) -> Iterator[Finding]:
    ratio = figures.get("sharpness_ratio", math.inf)
    if ratio < BLURRED_RATIO:
        size = next((name for name in ("latent_dim", "latent_channels", "variables") if hasattr(config, name)), "")
        remedy = f"Raise {size} or the width of network" + (", or lower beta" if _has_beta(config) else "")
        if isinstance(config, VQVAEConfig | VQVAE2Config):
            remedy = "Raise num_codes or the width of network, or lower network.downsamples"
        yield Finding("blurred", f"Reconstructions keep {ratio:.0%} of the images' fine detail.", f"{remedy}.")


def _inference(figures: Mapping[str, float]) -> Iterator[Finding]:
    gap, rate = figures.get("amortisation_gap_nats", 0.0), figures.get("rate_nats", 0.0)
    if gap > max(GAP_NATS, GAP_OF_RATE * rate):
        yield Finding(
            "amortisation_gap",
            f"The encoder's posteriors cost {gap:.1f} nats more than the best Gaussian of each image.",
            "Widen or deepen the encoder, or train longer.",
        )
    few = figures.get("few_effective_samples_fraction", 0.0)
    if few > FEW_EFFECTIVE_FRACTION:
        yield Finding(
            "unreliable_likelihood",
            f"For {few:.0%} of the images a handful of draws decides nll_nats: it is an upper bound, and a loose one.",
            "Raise evaluate.nll_samples, or compare with annealed importance sampling.",
        )


def _wake(config: ModelConfig) -> str:
    """What makes a code be used, of what the family has."""
    ways = ["raise beta from 0 over the first tenth of the run"] * _has_beta(config)
    ways += ["set free_bits"] * hasattr(config, "free_bits")
    return ", or ".join([*ways, "take a weaker decoder"]).capitalize() + "."


def _has_beta(config: ModelConfig) -> bool:
    return "beta" in config.SCHEDULED


def _final_beta(config: VAEConfig | IWAEConfig) -> float:
    return value_at(config.beta, 1.0) if isinstance(config, VAEConfig) else 1.0


class Sharpness:
    """Fine detail that reconstructions keep: the variance of their Laplacian over that of the images, over a split."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)

    def add(self, images: Tensor, reconstructions: Tensor, weight: Tensor) -> None:
        """images, reconstructions: [B, C, H, W] on one scale; weight: [B], 0 for rows that do not count."""
        both = torch.stack((laplacian_variance(images), laplacian_variance(reconstructions)))
        total = (torch.where(weight > 0, both.double(), 0.0) * weight).sum(1)
        self.sums = self.sums.to(total.device) + total

    def compute(self) -> dict[str, float]:
        """sharpness_ratio: 1: as sharp as the images, 0: flat. Over all ranks; empty for images without detail."""
        images, reconstructions = all_reduce_sum(self.sums.clone()).tolist()
        return {"sharpness_ratio": reconstructions / images} if images > 0 else {}


def laplacian_variance(images: Tensor) -> Tensor:
    """Variance over the pixels of the discrete Laplacian of each image, [B], in the square of the pixels' unit.

    Of signals (height 1) the second difference along the width. Without the border, whose neighbours are not known.
    """
    channels, height = images.shape[1:3]
    line = torch.tensor([[1.0, -2.0, 1.0]], device=images.device)
    if height > 1:
        line = F.pad(line, (0, 0, 1, 1)) + F.pad(line.T, (1, 1, 0, 0))
    kernel = line.expand(channels, 1, *line.shape).contiguous()
    return F.conv2d(images.float(), kernel, groups=channels).flatten(1).var(1, correction=0)
