"""Seconds for the importance-weighted likelihood of the MNIST test set, as published: 10,000 images, 5000 draws each.

python -m bench.likelihood            # minutes on two cores; writes bench/results/likelihood.json
python -m bench.likelihood --quick    # a smoke run; writes no results

The network is that of Burda et al. (784-200-200-50, tanh) with its initial weights; the images are random: neither
changes the time. Nothing is extrapolated but the loop over images, whose rate is measured on some of them.
"""

import argparse
import json
import math
import os
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.report import machine
from pipeline import files
from vae_core.config import DataSpec, IWAEConfig, MLPConfig
from vae_core.metrics.likelihood import LikelihoodSummary, default_chunk, importance_weighted
from vae_core.models import build_model
from vae_core.models.gaussian import GaussianModel
from vae_core.noise import Noise

RESULTS = Path("bench/results/likelihood.json")
MNIST = DataSpec(channels=1, height=28, width=28)
NETWORK = MLPConfig(kind="mlp", hidden=(200, 200), activation="tanh")
BATCH, THREADS, ROUNDS, SOME = 500, 2, 5, 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.likelihood")
    parser.add_argument("--quick", action="store_true", help="a smoke run; writes no results")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    images, samples = (BATCH, 50) if given.quick else (10_000, 5000)
    torch.set_num_threads(THREADS)
    device = torch.device(given.device)
    model = build_model(IWAEConfig(kind="iwae", latent_dim=50, network=NETWORK), MNIST).eval().to(device)
    assert isinstance(model, GaussianModel)
    load, cpu, seconds = os.getloadavg()[0], time.process_time(), whole(model, images, samples, device)
    found = {
        "machine": machine(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": THREADS,
        "images": images,
        "samples": samples,
        "chunk": default_chunk(torch.empty(1, *MNIST.shape, device=device)),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "times_faster_than_a_loop_over_images": round(ratio(model, samples, device), 2),
    }
    print(json.dumps(found, indent=2))
    if not given.quick and device.type == "cpu":
        files.write_json(RESULTS, found)


def whole(model: GaussianModel, images: int, samples: int, device: torch.device) -> float:
    """Seconds for all of it, with the noise and the figures, in batches of an evaluation."""
    summary = LikelihoodSummary()
    start = time.perf_counter()
    for step in range(images // BATCH):
        x, noise = batch(BATCH, step, device)
        summary.add(importance_weighted(model, x, None, noise=noise, samples=samples), torch.ones(BATCH, device=device))
    assert math.isfinite(summary.compute()["nll_nats"])  # and waits for the device
    return time.perf_counter() - start


def ratio(model: GaussianModel, samples: int, device: torch.device) -> float:
    """Time of the loop over ours, each an image, the median of rounds that take turns."""
    ratios = []
    for step in range(ROUNDS):
        x, noise = batch(SOME, step, device)
        ours, theirs = torch.empty(0), torch.empty(0)
        start = time.perf_counter()
        ours = importance_weighted(model, x, None, noise=noise, samples=samples).nll.cpu()
        between = time.perf_counter()
        theirs = torch.stack([one_image(model, image, samples) for image in x]).cpu()
        ratios.append((time.perf_counter() - between) / (between - start))
        torch.testing.assert_close(ours.float(), theirs, rtol=0.05, atol=0)
    return statistics.median(ratios)


@torch.no_grad()
def one_image(model: GaussianModel, image: Tensor, samples: int) -> Tensor:
    """What one would write by hand: all draws of an image in one pass, its pixels copied for each."""
    q = model.encode(image[None], None)
    epsilon = torch.randn(samples, model.latent_dim, device=image.device)
    z = q.mean + torch.exp(0.5 * q.log_var) * epsilon
    logits = model.decoder(z, None)
    x = image.expand(samples, -1, -1, -1)
    log_likelihood = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
    log_ratio = 0.5 * (epsilon.square() + q.log_var - z.square()).sum(1)
    return math.log(samples) - torch.logsumexp(log_likelihood + log_ratio, dim=0)


def batch(rows: int, step: int, device: torch.device) -> tuple[Tensor, Noise]:
    noise = Noise(seed=0, scope="bench", step=step, position=torch.arange(rows, device=device), rows=rows)
    return (noise.uniform("images", *MNIST.shape) < 0.13).float(), noise


if __name__ == "__main__":
    main()
