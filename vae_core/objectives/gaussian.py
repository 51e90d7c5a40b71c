"""Objectives of the models with one layer of Gaussian latents: the ELBO and its variants, and the importance bound."""

from vae_core.config import VAEConfig
from vae_core.estimators import importance_bound
from vae_core.models.autoencoder import AutoencoderOutput
from vae_core.models.base import Inputs
from vae_core.models.gaussian import GaussianOutput
from vae_core.models.iwae import IWAEOutput
from vae_core.normal import kl, kl_each
from vae_core.objectives.free_bits import free_bits, mean_over_rows
from vae_core.objectives.terms import Terms, elbo_parts
from vae_core.objectives.total_correlation import decomposition


def autoencoder_terms(output: AutoencoderOutput, inputs: Inputs) -> Terms:
    """Distortion alone: the code has no prior, so there is no rate and no ELBO."""
    distortion = output.pixels.nll(inputs.x)
    return Terms(distortion, {"distortion_nats": distortion})


def vae_terms(config: VAEConfig, output: GaussianOutput, inputs: Inputs) -> Terms:
    """Distortion + beta x rate, or the variant that the configuration names; see VAEConfig for their equations.

    Source: Higgins et al., ICLR 2017, equation 4; beta 1 is the negative ELBO of arXiv:1312.6114, equation 3.
    """
    distortion = output.pixels.nll(inputs.x).view(output.latent.shape[:2]).mean(0)
    each = kl_each(output.posterior, output.prior)
    rate, beta = each.sum(1), inputs.weights["beta"]
    parts = elbo_parts(distortion, rate)
    if config.capacity is not None:
        return Terms(distortion + beta * (rate - inputs.weights["capacity"]).abs(), parts)
    if config.free_bits > 0:
        floor = free_bits(each, mean_over_rows(each, inputs), config.free_bits)
        return Terms(distortion + beta * floor.sum(1), parts)
    if config.total_correlation is not None:
        split = decomposition(output, inputs)
        weighted = inputs.weights["total_correlation"] * split.total_correlation + beta * split.dimension_kl
        return Terms(distortion + split.mutual_information + weighted, {**parts, **split.parts()})
    return Terms(distortion + beta * rate, parts)


def importance_terms(output: IWAEOutput, *, gradient: str) -> Terms:
    """Minus the importance-weighted bound, or for `stl` and `dreg` the surrogate with their gradient.

    Source: arXiv:1509.00519, equations 8 and 14; arXiv:1703.09194; arXiv:1810.04152, equation 8.
    """
    log_weight, bound = output.log_weight, -importance_bound(output.log_weight)
    parts = elbo_parts(-output.log_likelihood.mean(0), kl(output.posterior, output.prior))
    parts["neg_iwae_bound_nats"] = bound
    if gradient == "iwae":
        return Terms(bound, parts)
    return Terms(-(log_weight.detach().softmax(0) * log_weight).sum(0), parts)
