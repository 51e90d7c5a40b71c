"""Our step by itself, and our loop as the stages run it."""

import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bench.training.clock import Clock, Ended, Enough
from bench.training.peers import CPU
from pipeline.data.loader import Loader
from pipeline.train.computing import computing
from pipeline.train.loop import build, evaluate, train
from pipeline.train.run import TrainRun
from pipeline.train.speed import SPEED
from vae_core.noise import Noise
from vae_core.schedules import value_at
from vae_core.training import compiled_forward, forward, make_optimizer, train_step

CHECKPOINT_EVERY_STEPS = 500
BESIDE = ("evaluation", "checkpoint")


def fit_steps(run: TrainRun, ended: Ended) -> None:
    """`train_step` on batches that are in memory, in the same order in each epoch."""
    with computing(torch.get_num_threads()):
        _steps(run, ended)


def _steps(run: TrainRun, ended: Ended) -> None:
    train_set, config = run.open("train"), run.train
    loader = Loader(train_set, config.seed, config.window_shards, config.global_batch_size)
    batches = list(loader.epoch(0))
    model = build(run, train_set.spec)
    optimizer = make_optimizer(model, learning_rate=1.0)
    run_forward = forward if config.compile == "off" else compiled_forward()
    for epoch in range(config.epochs):
        model.train()
        for at, batch in enumerate(batches):
            step = epoch * len(batches) + at
            progress = step / (config.epochs * len(batches))
            train_step(
                model,
                batch,
                optimizer,
                noise=Noise.of(batch, seed=config.seed, scope="train", step=step),
                learning_rate=value_at(config.learning_rate, progress),
                max_grad_norm=config.max_grad_norm,
                progress=progress,
                precision=config.precision,
                forward=run_forward,
            )
        ended(lambda: _neg_elbo(run, model))


def _neg_elbo(run: TrainRun, model: Any) -> float:
    loader = Loader(run.open("val"), run.train.seed, run.train.window_shards, run.train.global_batch_size)
    return evaluate(model, loader, seed=run.train.seed, device=CPU)["neg_elbo_nats"]


def fit_loop(run: TrainRun, ended: Ended) -> None:
    """With its log, its validation after each epoch and its checkpoints, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        train_in(Path(folder), run, ended)


def watched(run: TrainRun) -> tuple[list[float], dict[str, float]]:
    """Seconds of our loop at the end of each epoch, and by its own record the share of time in each of BESIDE."""
    clock = Clock(run.train.epochs)
    with tempfile.TemporaryDirectory() as folder:
        with suppress(Enough):
            train_in(Path(folder), run, clock)
        return clock.seconds, shares((Path(folder) / SPEED).read_text())


def shares(log: str) -> dict[str, float]:
    """Of a whole run, from its row for each epoch."""
    rows = [json.loads(line) for line in log.splitlines()]
    whole = sum(row["seconds"] for row in rows)
    return {name: sum(row["seconds"] * row[name] for row in rows) / whole for name in BESIDE}


def train_in(folder: Path, run: TrainRun, ended: Ended) -> None:
    """Our loop as the stages run it, in `folder`."""
    with computing(torch.get_num_threads()):
        train(
            run,
            folder,
            on_epoch=lambda epoch, figures: ended(lambda: figures["neg_elbo_nats"]),
            checkpoint_every_steps=CHECKPOINT_EVERY_STEPS,
        )
