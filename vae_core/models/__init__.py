"""The model families. `build_model` is the one dispatch from configuration to model."""

from typing import TypeAlias, assert_never

import torch

from vae_core.config import DataSpec, ModelConfig, VAEConfig, VQVAEConfig
from vae_core.models.vae import VAE
from vae_core.models.vqvae import VQVAE

Model: TypeAlias = VAE | VQVAE


def build_model(config: ModelConfig, data: DataSpec, *, seed: int = 0) -> Model:
    """The model with its initial weights, a function of `seed`; the global generator is left as it was.

    Raises:
        ValueError: the data lack what the model needs (labels, a size that halves evenly).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match config:
            case VAEConfig():
                return VAE(config, data)
            case VQVAEConfig():
                return VQVAE(config, data)
            case other:
                assert_never(other)
