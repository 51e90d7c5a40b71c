"""Small models of every family and kind, digits to feed them, and the steps that tests take with them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_core.batch import Batch
from vae_core.config import (
    AutoencoderConfig,
    CategoricalConfig,
    ConvConfig,
    DataSpec,
    HierarchicalConfig,
    IWAEConfig,
    MLPConfig,
    ModelConfig,
    NetworkConfig,
    VAEConfig,
    VQVAE2Config,
    VQVAEConfig,
)
from vae_core.models import Model, build_model
from vae_core.models.base import Inputs
from vae_core.noise import Noise
from vae_core.objectives import Terms
from vae_core.training import Step, prepare, train_step

DIGITS = DataSpec(channels=1, height=8, width=8, num_classes=10, attributes=2, embedding=3)
MLP = MLPConfig(kind="mlp", hidden=(32, 16), activation="silu")
CONV = ConvConfig(kind="conv", channels=4, downsamples=2, residual_blocks=1, activation="silu")
SHALLOW = ConvConfig(kind="conv", channels=4, downsamples=1, residual_blocks=1, activation="silu")


def autoencoder(network: NetworkConfig = MLP, **fields: Any) -> AutoencoderConfig:
    return AutoencoderConfig(kind="autoencoder", network=network, **{"latent_dim": 4, **fields})


def vae(network: NetworkConfig = MLP, **fields: Any) -> VAEConfig:
    return VAEConfig(kind="vae", network=network, **{"latent_dim": 4, **fields})


def iwae(network: NetworkConfig = MLP, **fields: Any) -> IWAEConfig:
    return IWAEConfig(kind="iwae", network=network, **{"latent_dim": 4, "samples": 3, **fields})


def vqvae(**fields: Any) -> VQVAEConfig:
    return VQVAEConfig(kind="vqvae", **{"num_codes": 8, "code_dim": 3, "network": CONV, **fields})


def vqvae2(**fields: Any) -> VQVAE2Config:
    return VQVAE2Config(kind="vqvae2", **{"num_codes": 8, "code_dim": 3, "network": SHALLOW, **fields})


def categorical(network: NetworkConfig = MLP, **fields: Any) -> CategoricalConfig:
    return CategoricalConfig(kind="categorical", network=network, **{"variables": 5, "categories": 4, **fields})


def hierarchical(**fields: Any) -> HierarchicalConfig:
    return HierarchicalConfig(kind="hierarchical", **{"network": CONV, "latent_channels": 2, **fields})


FAMILIES: dict[str, ModelConfig] = {
    "autoencoder": autoencoder(),
    "vae": vae(),
    "cvae": vae(condition="label"),
    "iwae": iwae(),
    "vqvae": vqvae(),
    "vqvae2": vqvae2(),
    "categorical": categorical(),
    "hierarchical": hierarchical(),
}


def _every_kind() -> Iterator[tuple[str, ModelConfig]]:
    """Each family with each of its variants at least once."""
    for network, likelihood, condition in product((MLP, CONV), ("bernoulli", "gaussian"), ("none", "label")):
        name = f"vae-{network.kind}-{likelihood}-{condition}"
        yield name, vae(network, likelihood=likelihood, condition=condition, beta=0.5)
    yield "vae-continuous-bernoulli-attributes", vae(likelihood="continuous_bernoulli", condition="attributes")
    yield "vae-logistic-embedding", vae(likelihood="discretised_logistic", condition="embedding")
    yield "vae-fixed-sigma", vae(likelihood="gaussian", sigma=0.3)
    yield "vae-per-pixel-sigma", vae(likelihood="gaussian", sigma="per_pixel")
    yield "vae-learned-prior", vae(condition="label", prior="learned", condition_dropout=0.3, samples=2)
    yield "vae-capacity", vae(beta=10.0, capacity=3.0)
    yield "vae-total-correlation", vae(total_correlation=4.0)
    for gradient in ("iwae", "stl", "dreg"):
        yield f"iwae-{gradient}", iwae(gradient=gradient)
    yield "iwae-label", iwae(condition="label", prior="learned")
    yield "autoencoder-conv-label", autoencoder(CONV, condition="label", likelihood="gaussian")
    for likelihood in ("bernoulli", "gaussian"):
        yield f"vqvae-{likelihood}", vqvae(likelihood=likelihood)
    yield "vqvae-loss-cosine", vqvae(codebook="loss", distance="cosine", start="kmeans")
    yield "vqvae-fsq-label", vqvae(codebook="fsq", num_codes=27, condition="label")
    yield "vqvae2-ema", vqvae2()
    yield "vqvae2-fsq", vqvae2(codebook="fsq")
    for estimator in ("gumbel", "straight_through", "reinforce", "wake_sleep"):
        yield f"categorical-{estimator}", categorical(estimator=estimator)
    for estimator in ("rloo", "vimco"):
        yield f"categorical-{estimator}", categorical(estimator=estimator, samples=3, condition="label")
    yield "hierarchical", hierarchical()
    yield "hierarchical-label", hierarchical(condition="label", likelihood="discretised_logistic")


EVERY_KIND: dict[str, ModelConfig] = dict(_every_kind())


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """The 1,797 images of 8 x 8 pixels that come with scikit-learn (UCI, Alpaydin & Kaynak), as a file of our own."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
    pixels = np.rint(images[:, None] * (255 / 16)).astype(np.uint8)
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))


def digits(rows: int, start: int = 0) -> Batch:
    """Rows of the digits as one whole global batch; attributes and embeddings are made from the pixels."""
    images, labels = _digits()
    images, labels = images[start : start + rows].clone(), labels[start : start + rows].clone()
    grey = images.float().flatten(1) / 255
    attributes = torch.stack((grey.mean(1), grey.std(1)), dim=1)
    return Batch(images, labels, torch.ones(rows), torch.arange(rows), rows, attributes, grey[:, 20:23])


def take(batch: Batch, rows: Tensor, weight: Tensor | None = None) -> Batch:
    """Some rows of a global batch, in their places; `global_rows` stays."""
    chosen = batch.apply(lambda tensor: tensor[rows])
    return chosen if weight is None else replace(chosen, weight=weight)


def noise_of(batch: Batch, *, step: int = 0, seed: int = 0, scope: str = "train") -> Noise:
    return Noise.of(batch, seed=seed, scope=scope, step=step)


def noise_for(rows: int, *, step: int = 0, seed: int = 0) -> Noise:
    return Noise(seed=seed, scope="test", step=step, position=torch.arange(rows), rows=rows)


def digits_model(config: ModelConfig, seed: int = 0) -> Model:
    return build_model(config, DIGITS, seed=seed)


def inputs_of(model: Model, batch: Batch, *, step: int = 0, progress: float = 0.0) -> Inputs:
    return prepare(model, batch, noise_of(batch, step=step), progress)


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
    **options: Any,
) -> Terms:
    """The terms of one step that was not skipped."""
    done = try_step(
        model, batch, optimizer, step=step, learning_rate=learning_rate, max_grad_norm=max_grad_norm, **options
    )
    assert not done.skipped
    return done.terms


def try_step(model: Model, batch: Batch, optimizer: torch.optim.Optimizer, *, step: int = 0, **options: Any) -> Step:
    return train_step(
        model,
        batch,
        optimizer,
        noise=noise_of(batch, step=step),
        **{"learning_rate": 1.0, "max_grad_norm": 1e9, **options},
    )


def follow(model: Model, output: Any, inputs: Inputs, noise: Noise) -> None:
    """What a step does after the optimizer's."""
    model.update(model.followed(output, inputs), inputs.row_weight, noise, torch.tensor(True))


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
