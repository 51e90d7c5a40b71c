"""What one rank does, and what one process does with the joined batch: the same code, run by `test_steps`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ranks import own_places
from torch import nn

from vae_core import distributed, training
from vae_core.batch import Batch
from vae_core.config import (
    CategoricalConfig,
    ConvConfig,
    DataSpec,
    HierarchicalConfig,
    IWAEConfig,
    MLPConfig,
    ModelConfig,
    VAEConfig,
    VQVAE2Config,
    VQVAEConfig,
)
from vae_core.metrics.codebook import CodebookUsage
from vae_core.metrics.latent import ActiveUnits
from vae_core.metrics.means import Means
from vae_core.models import build_model
from vae_core.models.base import Inputs
from vae_core.noise import Noise
from vae_core.objectives import Terms
from vae_core.training import Joined, eval_step, make_optimizer, train_step, unwrap

DATA = DataSpec(channels=1, height=8, width=8, num_classes=4)
MLP = MLPConfig(kind="mlp", hidden=(16,), activation="silu")
CONV = ConvConfig(kind="conv", channels=4, downsamples=2, residual_blocks=1, activation="silu")
SHALLOW = ConvConfig(kind="conv", channels=4, downsamples=1, activation="silu")
FREE_BITS = 0.02  # of the VAE: above the mean rate of some latent dimensions at the start, and below that of others
FAMILIES: dict[str, ModelConfig] = {
    "vae": VAEConfig(kind="vae", latent_dim=3, network=CONV, likelihood="gaussian"),
    "cvae": VAEConfig(kind="vae", latent_dim=3, network=MLP, condition="label", prior="learned"),
    "vae-free-bits": VAEConfig(kind="vae", latent_dim=8, network=MLP, free_bits=FREE_BITS, beta=100.0),
    "vae-total-correlation": VAEConfig(kind="vae", latent_dim=3, network=MLP, total_correlation=4.0),
    "iwae": IWAEConfig(kind="iwae", latent_dim=3, network=MLP, samples=3),
    "vqvae": VQVAEConfig(kind="vqvae", num_codes=8, code_dim=3, network=CONV, ema_decay=0.6, restart_below=0.5),
    "vqvae2": VQVAE2Config(kind="vqvae2", num_codes=8, code_dim=3, network=SHALLOW, ema_decay=0.6, restart_below=0.5),
    "reinforce": CategoricalConfig(
        kind="categorical", variables=3, categories=4, network=MLP, estimator="reinforce", samples=2
    ),
    "wake-sleep": CategoricalConfig(kind="categorical", variables=3, categories=4, network=MLP, estimator="wake_sleep"),
    "hierarchical": HierarchicalConfig(
        kind="hierarchical", network=SHALLOW, latent_channels=2, free_bits=0.05, balance=True
    ),
}
SIZES = (7, 1, 8, 5, 7, 6)  # rows of the global batches: uneven for two ranks, one with padding alone on a rank
FAULTS = ("gradient", "loss")
IN_PARTS = ("vae", "cvae", "vqvae", "vqvae2", "reinforce", "wake-sleep")
COMPILED = ("vae-free-bits", "vqvae")
CPU = torch.device("cpu")


def global_batch(step: int, rows: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (rows, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(4, (rows,), generator=generator)
    return Batch(images, labels, torch.ones(rows), torch.arange(rows), rows)


def own_rows(batch: Batch) -> Batch:
    """Every world-th row, padded to the same length with the last row; the whole batch where there is one rank."""
    rows = batch.global_rows
    places = own_places(rows)
    weight, places = (places < rows).float(), places.clamp(max=rows - 1)
    assert batch.labels is not None
    return Batch(batch.images[places], batch.labels[places], weight, places, rows)


def own_batch(step: int, rows: int) -> tuple[Batch, Noise]:
    batch = own_rows(global_batch(step, rows))
    return batch, Noise.of(batch, seed=1, scope="train", step=step)


def train(
    config: ModelConfig,
    optimizer_of: Callable[[nn.Module], Any],
    rate: float,
    steps: int,
    max_rows: int | None = None,
    compiled: bool = False,
) -> dict[str, Any]:
    """The model's state after some steps, and what the last of them reported of this rank's rows."""
    core = build_model(config, DATA)
    optimizer, model, run = optimizer_of(core), core, training.forward
    if compiled:
        torch.compiler.reset()
        run = torch.compile(training.forward, fullgraph=True, backend="aot_eager")
        if distributed.world_size() > 1:
            model, run = Joined(core, run), Joined.call
    model = distributed.data_parallel(model, CPU)
    step_with = partial(train_step, learning_rate=rate, max_grad_norm=50.0, forward=run, max_rows=max_rows)
    for step in range(steps):
        batch, noise = own_batch(step, SIZES[step])
        done = step_with(model, batch, optimizer, noise=noise)
        assert not done.skipped
    assert unwrap(model) is core
    real = batch.weight > 0
    return {
        "state": {name: tensor.clone() for name, tensor in core.state_dict().items()},
        "places": batch.position[real],
        "terms": {name: part[real] for name, part in {"loss": done.terms.loss, **done.terms.parts}.items()},
    }


def one_step(config: ModelConfig) -> dict[str, Any]:
    return train(config, lambda core: torch.optim.SGD(core.parameters(), lr=1.0), rate=1e-2, steps=1)


def several_steps(config: ModelConfig, **options: Any) -> dict[str, Any]:
    return train(config, lambda core: make_optimizer(core, learning_rate=1e-3), 1e-3, len(SIZES), **options)


def metrics() -> dict[str, Any]:
    """Figures over uneven batches: of a model's terms, of latents and of codes."""
    means, units, usage = Means(), ActiveUnits(3), CodebookUsage(8)
    model = build_model(FAMILIES["vae"], DATA)
    for step, rows in enumerate(SIZES):
        batch, noise = own_batch(step, rows)
        means.add(eval_step(model, batch, noise), batch.weight)
        units.add(batch.images[:, 0, 0, :3] / 255 * torch.tensor([0.1, 0.5, 1.0]), batch.weight)
        usage.add(batch.images[:, 0, ::4, ::4].long() // 40, batch.weight)
        for figure in (means, units, usage):
            figure.compute()  # as a log does, which must not disturb what follows
    return {
        "means": means.compute(),
        "variances": units.variances(),
        "active_units": units.compute(),
        "usage": usage.compute(),
        "resumed": resumed_means(),
    }


def resumed_means() -> dict[str, float]:
    """Means over all batches, where after half of them rank 0 alone goes on from the saved state."""
    means = Means()
    for step, rows in enumerate(SIZES):
        if step == len(SIZES) // 2:
            state, means = means.state_dict(), Means()
            if distributed.rank() == 0:
                means.load_state_dict(state)
        batch, _ = own_batch(step, rows)
        means.add({"x": batch.images.double().flatten(1).mean(1)}, batch.weight)
    return means.compute()


def spoilt(model: nn.Module, inputs: Inputs) -> tuple[Any, Terms]:
    """The objective with a loss that is not finite, and with the gradient that it has without."""
    output, terms = training.forward(model, inputs)
    return output, Terms(terms.loss + float("inf"), terms.parts)


def fault_on_the_last_rank(config: ModelConfig, fault: str) -> dict[str, bool]:
    """Loss or gradient not finite on one rank alone: what every rank reports, and what is left of the model."""
    core = build_model(config, DATA)
    optimizer, model = make_optimizer(core, learning_rate=1e-3), distributed.data_parallel(core, CPU)
    before = {name: tensor.clone() for name, tensor in core.state_dict().items()}
    last = distributed.rank() == distributed.world_size() - 1
    hook = next(core.parameters()).register_hook(
        lambda gradient: gradient * float("nan") if last and fault == "gradient" else gradient
    )
    forward = spoilt if last and fault == "loss" else training.forward
    batch, noise = own_batch(0, 7)
    options: dict[str, Any] = {"learning_rate": 1e-3, "max_grad_norm": 50.0}
    skipped = train_step(model, batch, optimizer, noise=noise, forward=forward, **options).skipped
    state = core.state_dict()
    moments = [moment for kept in optimizer.state.values() for moment in kept.values()]
    unchanged = all(torch.equal(state[name], tensor) for name, tensor in before.items())
    unchanged = unchanged and not any(moment.any() for moment in moments)
    hook.remove()
    again = train_step(model, batch, optimizer, noise=noise, **options).skipped
    return {"skipped": skipped.item(), "unchanged": unchanged, "skipped_again": again.item()}


def collectives() -> dict[str, Any]:
    rank, tensor = distributed.rank(), torch.tensor([1.0, 2.0]) * (distributed.rank() + 1)
    returned = distributed.all_reduce_sum(tensor)
    distributed.barrier()
    wrapped = distributed.data_parallel(nn.Linear(1, 1), CPU)
    return {
        "rank": rank,
        "world": distributed.world_size(),
        "sum": tensor.tolist(),
        "in_place": returned is tensor,
        "from_rank_zero": [distributed.from_rank_zero(value + 1000 * rank) for value in (0, 17, 2**40)],
        "wrapped": type(wrapped).__name__,
        "broadcasts_buffers": getattr(wrapped, "broadcast_buffers", None),
    }


def results(_: Path) -> dict[str, Any]:
    """Everything, as this process computes it."""
    return {
        "collectives": collectives(),
        "one_step": {family: one_step(config) for family, config in FAMILIES.items()},
        "several_steps": {family: several_steps(config) for family, config in FAMILIES.items()},
        "parts": {family: several_steps(FAMILIES[family], max_rows=2) for family in IN_PARTS},
        "compiled": {family: several_steps(FAMILIES[family], compiled=True) for family in COMPILED},
        "fault": {
            family: {fault: fault_on_the_last_rank(FAMILIES[family], fault) for fault in FAULTS}
            for family in ("cvae", "vqvae", "reinforce")
        },
        "metrics": metrics(),
    }
