"""What is minimised: pure functions of a model's output, one number a sample, in nats."""

from typing import TypeVar, assert_never

from vae_core.config import (
    AutoencoderConfig,
    CategoricalConfig,
    HierarchicalConfig,
    IWAEConfig,
    ModelConfig,
    VAEConfig,
    VQVAE2Config,
    VQVAEConfig,
)
from vae_core.models.autoencoder import AutoencoderOutput
from vae_core.models.base import Inputs
from vae_core.models.categorical import CategoricalOutput
from vae_core.models.gaussian import GaussianOutput
from vae_core.models.hierarchical import HierarchicalOutput
from vae_core.models.iwae import IWAEOutput
from vae_core.models.vqvae import VQOutput
from vae_core.objectives.categorical import categorical_terms
from vae_core.objectives.gaussian import autoencoder_terms, importance_terms, vae_terms
from vae_core.objectives.hierarchical import hierarchical_terms
from vae_core.objectives.quantized import vq_terms
from vae_core.objectives.terms import ELBO, Terms

__all__ = ["Terms", "objective", "part_names"]

Output = TypeVar("Output")


def objective(config: ModelConfig, output: object, inputs: Inputs) -> Terms:
    """The terms of `output`, of a model with this configuration, under the objective of its family.

    Raises:
        TypeError: the output is another family's.
    """
    match config:
        case AutoencoderConfig():
            return autoencoder_terms(_own(config, output, AutoencoderOutput), inputs)
        case VAEConfig():
            return vae_terms(config, _own(config, output, GaussianOutput), inputs)
        case IWAEConfig():
            return importance_terms(_own(config, output, IWAEOutput), gradient=config.gradient)
        case VQVAEConfig() | VQVAE2Config():
            return vq_terms(config, _own(config, output, VQOutput), inputs)
        case CategoricalConfig():
            return categorical_terms(config, _own(config, output, CategoricalOutput), inputs)
        case HierarchicalConfig():
            return hierarchical_terms(config, _own(config, output, HierarchicalOutput), inputs)
        case other:
            assert_never(other)


def part_names(config: ModelConfig) -> tuple[str, ...]:
    """The names of the parts that `objective` gives."""
    match config:
        case AutoencoderConfig():
            return ("distortion_nats",)
        case VAEConfig(total_correlation=weight) if weight is not None:
            return (*ELBO, "mutual_information_nats", "total_correlation_nats", "dimension_kl_nats")
        case IWAEConfig() | CategoricalConfig(estimator="vimco"):
            return (*ELBO, "neg_iwae_bound_nats")
        case VQVAEConfig() | VQVAE2Config() if config.codebook != "fsq":
            return (*ELBO, "commitment_squared_distance")
        case CategoricalConfig(estimator="wake_sleep"):
            return (*ELBO, "sleep_nats")
        case VAEConfig() | VQVAEConfig() | VQVAE2Config() | CategoricalConfig() | HierarchicalConfig():
            return ELBO
        case other:
            assert_never(other)


def _own(config: ModelConfig, output: object, expected: type[Output]) -> Output:
    if not isinstance(output, expected):
        raise TypeError(
            f"output: a model of kind {config.kind} gives {expected.__name__}, this is {type(output).__name__}"
        )
    return output
