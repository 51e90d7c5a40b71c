"""What is minimised: pure functions of a model's output, one number a sample, in nats."""

from typing import Any, assert_never

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
from vae_core.models.base import Inputs
from vae_core.objectives.categorical import categorical_terms
from vae_core.objectives.gaussian import autoencoder_terms, importance_terms, vae_terms
from vae_core.objectives.hierarchical import hierarchical_terms
from vae_core.objectives.quantized import vq_terms
from vae_core.objectives.terms import Terms

__all__ = ["Terms", "objective"]


def objective(config: ModelConfig, output: Any, inputs: Inputs) -> Terms:
    """The terms of `output`, of a model with this configuration, under the objective of its family."""
    match config:
        case AutoencoderConfig():
            return autoencoder_terms(output, inputs)
        case VAEConfig():
            return vae_terms(config, output, inputs)
        case IWAEConfig():
            return importance_terms(output, inputs, gradient=config.gradient)
        case VQVAEConfig() | VQVAE2Config():
            return vq_terms(config, output, inputs)
        case CategoricalConfig():
            return categorical_terms(config, output, inputs)
        case HierarchicalConfig():
            return hierarchical_terms(config, output, inputs)
        case other:
            assert_never(other)
