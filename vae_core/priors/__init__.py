"""Learned priors over the codes of quantised models."""

from vae_core.priors.pixelcnn import CodePrior, build_prior, uniform_nats
from vae_core.priors.training import PriorStep, prior_step

__all__ = ["CodePrior", "PriorStep", "build_prior", "prior_step", "uniform_nats"]
