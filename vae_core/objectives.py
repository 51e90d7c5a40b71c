"""What is minimised: pure functions of a model's output, one number a sample, in nats."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_core.config import ModelConfig, VAEConfig, VQVAEConfig
from vae_core.models.vae import VAEOutput
from vae_core.models.vqvae import VQVAEOutput


@dataclass(frozen=True, slots=True)
class Terms:
    """The loss [B] that is minimised, and its parts [B], without their weights, by names that end in the unit.

    Every family has `distortion_nats`, `rate_nats` and `neg_elbo_nats`, their sum: the negative ELBO at beta 1.
    """

    loss: Tensor
    parts: Mapping[str, Tensor]


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, I)) of each sample, in nats.

    Args:
        mean: [B, ...] posterior means.
        log_var: same shape; natural log of the variances.

    Returns:
        [B], summed over every axis but the batch.

    Raises:
        ValueError: the shapes differ.

    Source: Kingma & Welling, arXiv:1312.6114, appendix B.
    """
    if mean.shape != log_var.shape:
        raise ValueError(f"log_var: expected the shape of mean {tuple(mean.shape)}, got {tuple(log_var.shape)}")
    mean, log_var = mean.float(), log_var.float()
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1)


def elbo_terms(output: VAEOutput, x: Tensor, *, beta: float) -> Terms:
    """Distortion + beta x rate.

    Source: Higgins et al., ICLR 2017, equation 4; beta 1 is the negative ELBO of arXiv:1312.6114, equation 3.
    """
    distortion = output.pixels.nll(x)
    rate = gaussian_kl(output.posterior.mean, output.posterior.log_var)
    return Terms(distortion + beta * rate, _parts(distortion, rate))


def vq_terms(output: VQVAEOutput, x: Tensor, *, num_codes: int, commitment_weight: float) -> Terms:
    """Distortion + commitment_weight x commitment; the codebook follows by moving averages, without a gradient.

    The rate is that of a uniform prior over the codes: positions x log(num_codes), the same for every image.

    Source: van den Oord et al., arXiv:1711.00937, equation 3, summed over positions and dimensions.
    """
    distortion = output.pixels.nll(x)
    commitment = (output.encoded - output.quantized.detach()).square().flatten(1).sum(1)
    rate = torch.full_like(distortion, output.codes[0].numel() * math.log(num_codes))
    parts = {**_parts(distortion, rate), "commitment_squared_distance": commitment}
    return Terms(distortion + commitment_weight * commitment, parts)


def objective(config: ModelConfig, output: VAEOutput | VQVAEOutput, x: Tensor) -> Terms:
    """The terms of `output` under the objective of its family."""
    match config, output:
        case VAEConfig(), VAEOutput():
            return elbo_terms(output, x, beta=config.beta)
        case VQVAEConfig(), VQVAEOutput():
            return vq_terms(output, x, num_codes=config.num_codes, commitment_weight=config.commitment_weight)
        case _:
            raise TypeError(f"{type(config).__name__} does not describe the model of a {type(output).__name__}")


def _parts(distortion: Tensor, rate: Tensor) -> dict[str, Tensor]:
    return {"neg_elbo_nats": distortion + rate, "distortion_nats": distortion, "rate_nats": rate}
