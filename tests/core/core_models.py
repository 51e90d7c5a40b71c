"""Small models of every family and kind, digits to feed them, and the steps that tests take with them."""

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from vae_core.batch import Batch
from vae_core.config import ConvConfig, DataSpec, MLPConfig, ModelConfig, NetworkConfig, VAEConfig, VQVAEConfig
from vae_core.models import Model, build_model
from vae_core.noise import Noise
from vae_core.objectives import Terms
from vae_core.training import train_step

DIGITS = DataSpec(channels=1, height=8, width=8, num_classes=10)
MLP = MLPConfig(kind="mlp", hidden=(32, 16), activation="silu")
CONV = ConvConfig(kind="conv", channels=4, downsamples=2, residual_blocks=1, activation="silu")


def vae(network: NetworkConfig = MLP, **fields: Any) -> VAEConfig:
    return VAEConfig(kind="vae", network=network, **{"latent_dim": 4, **fields})


def vqvae(**fields: Any) -> VQVAEConfig:
    return VQVAEConfig(kind="vqvae", **{"num_codes": 8, "code_dim": 3, "network": CONV, **fields})


FAMILIES: dict[str, ModelConfig] = {"vae": vae(), "cvae": vae(condition="label"), "vqvae": vqvae()}


def _every_kind() -> Iterator[tuple[str, ModelConfig]]:
    for network, likelihood, condition in product((MLP, CONV), ("bernoulli", "gaussian"), ("none", "label")):
        name = f"vae-{network.kind}-{likelihood}-{condition}"
        yield name, vae(network, likelihood=likelihood, condition=condition, beta=0.5)
    for likelihood in ("bernoulli", "gaussian"):
        yield f"vqvae-{likelihood}", vqvae(likelihood=likelihood)


EVERY_KIND: dict[str, ModelConfig] = dict(_every_kind())


@cache
def _digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))


def digits(rows: int, start: int = 0) -> Batch:
    """Rows of the digits as one whole global batch."""
    images, labels = _digits()
    images, labels = images[start : start + rows].clone(), labels[start : start + rows].clone()
    return Batch(images, labels, weight=torch.ones(rows), position=torch.arange(rows), global_rows=rows)


def take(batch: Batch, rows: Tensor, weight: Tensor | None = None) -> Batch:
    """Some rows of a global batch, in their places; `global_rows` stays."""
    labels = None if batch.labels is None else batch.labels[rows]
    chosen = torch.ones(len(rows)) if weight is None else weight
    return Batch(batch.images[rows], labels, chosen, batch.position[rows], batch.global_rows)


def noise_of(batch: Batch, *, step: int = 0, seed: int = 0, scope: str = "train") -> Noise:
    return Noise.of(batch, seed=seed, scope=scope, step=step)


def noise_for(rows: int, *, step: int = 0, seed: int = 0) -> Noise:
    return Noise(seed=seed, scope="test", step=step, position=torch.arange(rows), rows=rows)


def digits_model(config: ModelConfig, seed: int = 0) -> Model:
    return build_model(config, DIGITS, seed=seed)


def sgd(model: Model) -> torch.optim.SGD:
    """Plain descent at rate 1: a step moves each parameter by its gradient."""
    return torch.optim.SGD(model.parameters(), lr=1.0)


def step_once(
    model: Model,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    *,
    step: int = 0,
    learning_rate: float = 1.0,
    max_grad_norm: float = 1e9,
) -> Terms:
    return train_step(
        model,
        batch,
        optimizer,
        noise=noise_of(batch, step=step),
        learning_rate=learning_rate,
        max_grad_norm=max_grad_norm,
    )


def snapshot(model: Model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def make_trained(config: ModelConfig, steps: int = 5) -> Model:
    """A model that has left its initial weights, with a codebook that has started where it has one."""
    model = digits_model(config)
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(steps):
        step_once(model, digits(32, start=32 * step), optimizer, step=step, learning_rate=1e-2)
    return model.eval()
