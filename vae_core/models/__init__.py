"""The model families. `build_model` is the one dispatch from configuration to model."""

from typing import assert_never

import torch

from vae_core.config import (
    AutoencoderConfig,
    CategoricalConfig,
    DataSpec,
    HierarchicalConfig,
    IWAEConfig,
    ModelConfig,
    VAEConfig,
    VQVAE2Config,
    VQVAEConfig,
)
from vae_core.models.autoencoder import Autoencoder
from vae_core.models.base import CodeModel, ContinuousModel, HasLikelihood, HasPrior, Model
from vae_core.models.categorical import Categorical
from vae_core.models.hierarchical import Hierarchical
from vae_core.models.iwae import IWAE
from vae_core.models.vae import VAE
from vae_core.models.vqvae import VQVAE
from vae_core.models.vqvae2 import VQVAE2

__all__ = ["CodeModel", "ContinuousModel", "HasLikelihood", "HasPrior", "Model", "build_model"]


def build_model(config: ModelConfig, data: DataSpec, *, seed: int = 0) -> Model:
    """The model with its initial weights, a function of `seed`; the global generator is left as it was.

    Raises:
        ValueError: the data lack what the model needs (labels, a size that halves evenly).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(config, data)


def _build(config: ModelConfig, data: DataSpec) -> Model:
    match config:
        case AutoencoderConfig():
            return Autoencoder(config, data)
        case VAEConfig():
            return VAE(config, data)
        case IWAEConfig():
            return IWAE(config, data)
        case VQVAEConfig():
            return VQVAE(config, data)
        case VQVAE2Config():
            return VQVAE2(config, data)
        case CategoricalConfig():
            return Categorical(config, data)
        case HierarchicalConfig():
            return Hierarchical(config, data)
        case other:
            assert_never(other)
