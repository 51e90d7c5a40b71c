"""Frozen configuration of data, networks, schedules and models. Plain data: no YAML, no pydantic, no torch."""

from vae_core.config.base import RangeError, Strict, check, check_at_least
from vae_core.config.data import DataSpec
from vae_core.config.dicts import model_from_dict, to_dict
from vae_core.config.models import (
    AutoencoderConfig,
    CategoricalConfig,
    Condition,
    HierarchicalConfig,
    IWAEConfig,
    Likelihood,
    ModelBase,
    ModelConfig,
    Prior,
    QuantizedConfig,
    VAEConfig,
    VQVAE2Config,
    VQVAEConfig,
)
from vae_core.config.networks import Activation, ConvConfig, MLPConfig, NetworkConfig
from vae_core.config.schedules import (
    CyclicalConfig,
    OneCycleConfig,
    RampConfig,
    ScheduleConfig,
    Scheduled,
    check_scheduled,
)

__all__ = [
    "Activation",
    "AutoencoderConfig",
    "CategoricalConfig",
    "Condition",
    "ConvConfig",
    "CyclicalConfig",
    "DataSpec",
    "HierarchicalConfig",
    "IWAEConfig",
    "Likelihood",
    "MLPConfig",
    "ModelBase",
    "ModelConfig",
    "NetworkConfig",
    "OneCycleConfig",
    "Prior",
    "QuantizedConfig",
    "RampConfig",
    "RangeError",
    "ScheduleConfig",
    "Scheduled",
    "Strict",
    "VAEConfig",
    "VQVAE2Config",
    "VQVAEConfig",
    "check",
    "check_at_least",
    "check_scheduled",
    "model_from_dict",
    "to_dict",
]
