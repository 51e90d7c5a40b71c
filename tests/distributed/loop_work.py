"""Whole runs of the training loop as one rank, or one process, sees them: for `test_loops`.

The directory holds the shards, and the folders of runs that other ranks broke off: those are taken to their end.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.train import learner
from pipeline.train.config import TrainConfig
from pipeline.train.loop import train
from pipeline.train.run import TrainRun
from vae_core import distributed
from vae_core.batch import Batch
from vae_core.config import ConvConfig, MLPConfig, ModelConfig, OneCycleConfig, VAEConfig, VQVAEConfig
from vae_core.training import Step, train_step

FAMILIES: dict[str, ModelConfig] = {
    "vae": VAEConfig(kind="vae", latent_dim=4, network=MLPConfig(kind="mlp", hidden=(32,))),
    "vqvae": VQVAEConfig(
        kind="vqvae", num_codes=16, code_dim=4, network=ConvConfig(kind="conv", channels=8, downsamples=2)
    ),
}
BROKEN_AT = 15  # in the middle of the second epoch; the last checkpoint before it is that of step 12


def results(directory: Path) -> dict[str, Any]:
    return {family: of_family(family, directory) for family in FAMILIES}


def of_family(family: str, directory: Path) -> dict[str, Any]:
    """The rows that each step of a whole run saw; another run is broken off, left so, and taken to its end."""
    run, broken, own = run_of(family, directory / "shards"), directory / f"{family}-broken", directory / f"{family}-own"
    with watched() as seen:
        go(run, directory / f"{family}-whole")
    found = {"seen": seen}
    if broken.exists():
        with watched() as seen:
            go(run, broken)
        found["seen_after"] = seen
    with watched(BROKEN_AT):
        go(run, own)
    if distributed.rank() == 0:
        shutil.copytree(own, directory / f"{family}-left")
    distributed.barrier()
    go(run, own)
    return found


def run_of(family: str, shards: Path) -> TrainRun:
    config = TrainConfig(
        seed=0,
        epochs=2,
        global_batch_size=128,
        learning_rate=OneCycleConfig(kind="one_cycle", peak=0.002),
        max_grad_norm=1000.0,
        window_shards=2,
        max_skipped_steps=0,
    )
    return TrainRun.of(FAMILIES[family], config, shards.resolve())


def go(run: TrainRun, folder: Path) -> None:
    train(run, folder, on_epoch=lambda *_: None, checkpoint_every_steps=4, device=torch.device("cpu"), leaving=no)


def no() -> bool:
    return False


class BrokenOff(Exception):
    """Not an error: what ends a run here."""


@contextmanager
def watched(broken_at: int = 0) -> Iterator[list[dict[str, Any]]]:
    """Note the place in the global batch and a sum of the pixels of each row of this rank; end at a step."""
    seen: list[dict[str, Any]] = []

    def step(model: Any, batch: Batch, *args: Any, **keywords: Any) -> Step:
        real = batch.weight > 0
        pixels = (batch.images[real].long().flatten(1) * torch.arange(1, 65)).sum(1)
        seen.append({"places": batch.position[real].tolist(), "pixels": pixels.tolist()})
        if len(seen) == broken_at:
            raise BrokenOff
        return train_step(model, batch, *args, **keywords)

    learner.train_step = step  # type: ignore[assignment]
    try:
        yield seen
    except BrokenOff:
        pass
    finally:
        learner.train_step = train_step
