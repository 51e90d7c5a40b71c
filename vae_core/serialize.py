"""Model <-> a directory of `model.safetensors` and `config.json`. No pickle; the same model gives the same bytes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load, save
from torch import Tensor, nn

from vae_core.config import DataSpec, ModelConfig, model_from_dict, to_dict
from vae_core.models import Model, build_model

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class ModelFileError(ValueError):
    """A model's directory is incomplete, damaged, or does not hold what its configuration says."""


def dump_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Safetensors bytes, independent of the order of the entries."""
    return save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})


def describe(config: ModelConfig, data: DataSpec) -> dict[str, Any]:
    """What `config.json` holds: the model's configuration and the data that it fits."""
    return {"model": to_dict(config), "data": asdict(data)}


def load_weights(module: nn.Module, data: bytes) -> None:
    """Put the tensors of a safetensors file into a module that has just these, by name, shape and type.

    Raises:
        RuntimeError, SafetensorError: it has others, or the file is damaged.
    """
    tensors = load(data)
    for name, value in module.state_dict().items():
        if name in tensors and tensors[name].dtype != value.dtype:  # torch would convert it
            raise RuntimeError(f"{name}: expected {value.dtype}, found {tensors[name].dtype}")
    module.load_state_dict(tensors)


def load_model(directory: Path) -> Model:
    """The model of a directory, in evaluation mode, on the CPU.

    Raises:
        ModelFileError: naming the file and what is wrong with it.
    """
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        model = build_model(model_from_dict(config["model"]), DataSpec(**config["data"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelFileError(f"{directory / CONFIG}: {error}") from None
    try:
        load_weights(model, (directory / WEIGHTS).read_bytes())
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"{directory / WEIGHTS}: {error}") from None
    return model.eval()
