"""Images trained a second: our loop, against a bare torch loop of the same model, data and batch size, in one run.

python bench/train.py           # after `dvc repro shard`
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import load_params
from pipeline.data.loader import open_split
from pipeline.train.loop import train
from pipeline.train.run import TrainRun
from vae_core.models import build_model
from vae_core.models.vae import VAE

SHARDS = Path("data/shards")
ROUNDS = 3


def ours() -> float:
    """One epoch of the loop as the stages run it: keyed noise, metrics, checkpoint; without Ray's start."""
    params = load_params()
    run = TrainRun.of(params.models["vae"], params.train, SHARDS)
    with tempfile.TemporaryDirectory() as folder:
        ends = [time.perf_counter()]
        train(
            run,
            Path(folder),
            on_epoch=lambda *_: ends.append(time.perf_counter()),
            checkpoint_every_steps=500,
            epochs=2,
        )
    return len(open_split(SHARDS, "train")) / (ends[2] - ends[1])


def bare() -> float:
    """What one would write by hand: everything in memory, global noise, plain Adam, no metrics, nothing saved."""
    params = load_params()
    split = open_split(SHARDS, "train")
    images = torch.from_numpy(split.images(torch.arange(len(split)).numpy())).movedim(-1, 1).float() / 255
    model = build_model(params.models["vae"], split.spec)
    assert isinstance(model, VAE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    _bare_epoch(model, optimizer, images, params.train.global_batch_size)
    start = time.perf_counter()
    _bare_epoch(model, optimizer, images, params.train.global_batch_size)
    return len(images) / (time.perf_counter() - start)


def _bare_epoch(model: VAE, optimizer: torch.optim.Optimizer, images: torch.Tensor, batch_size: int) -> None:
    body, head, decoder = model.encoder.body, model.to_posterior, nn.Sequential(model.decoder.body, model.decoder.out)
    for rows in torch.randperm(len(images)).split(batch_size):
        x = torch.bernoulli(images[rows]).flatten(1)
        mean, log_var = head(body(x)).chunk(2, dim=1)
        logits = decoder(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean))
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
        loss = (F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1) + kl).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    rates = {"bare loop": [], "ours": []}
    for _ in range(ROUNDS):
        rates["bare loop"].append(bare())
        rates["ours"].append(ours())
    peer = statistics.median(rates["bare loop"])
    print(f"vae, {torch.get_num_threads()} threads, float32, median of {ROUNDS}")
    for name, found in rates.items():
        print(
            f"{name:<12}{statistics.median(found):>12,.0f} images/s{statistics.median(found) / peer:>8.2f} x bare loop"
        )
