"""Prior <-> a directory of `model.safetensors` and `config.json`, as `serialize` does it for models."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors

from vae_core.config.priors import PixelCNNConfig
from vae_core.priors.pixelcnn import CodePrior, build_prior
from vae_core.serialize import CONFIG, WEIGHTS, ModelFileError, load_weights


def describe_prior(prior: CodePrior) -> dict[str, Any]:
    """What `config.json` holds: the configuration and the codes that the prior fits. Ready for JSON."""
    return {
        "prior": asdict(prior.config),
        "grids": [list(grid) for grid in prior.grids],
        "num_codes": prior.num_codes,
        "condition_dim": prior.condition_dim,
    }


def load_prior(directory: Path) -> CodePrior:
    """The prior of a directory, in evaluation mode, on the CPU.

    Raises:
        ModelFileError: naming the file and what is wrong with it.
    """
    try:
        prior = _from_dict(json.loads((directory / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
        raise ModelFileError(f"{directory / CONFIG}: {error}") from None
    try:
        load_weights(prior, (directory / WEIGHTS).read_bytes())
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"{directory / WEIGHTS}: {error}") from None
    return prior.eval()


def _from_dict(values: dict[str, Any]) -> CodePrior:
    kind = values["prior"]["kind"]
    if kind != "pixelcnn":
        raise ValueError(f"kind: expected 'pixelcnn', got {kind!r}")
    grids = [tuple(grid) for grid in values["grids"]]
    return build_prior(PixelCNNConfig(**values["prior"]), grids, values["num_codes"], values["condition_dim"])
