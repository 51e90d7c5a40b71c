"""The figure of a trained model, by the row's measure."""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from bench.reproduction.data import Data, Rows
from bench.reproduction.row import Row
from bench.reproduction.training import Trained
from vae_core.batch import Batch
from vae_core.likelihoods import observe
from vae_core.metrics.disentanglement.information import (
    discretise,
    entropies,
    mutual_information,
    mutual_information_gap,
    value_numbers,
)
from vae_core.metrics.likelihood import importance_weighted
from vae_core.models import HasLikelihood, Model
from vae_core.noise import Noise

AT_ONCE = 1000
MIG_ROWS = 10_000
SEED = 0  # the same test pixels and draws for every row


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, its standard error over the test images (None: of a single number), and by how many draws."""

    got: float
    standard_error: float | None = None
    samples: int | None = None


def evaluate(row: Row, trained: Trained, data: Data, *, samples: int) -> Figure:
    """The figure of a row, in its unit; always in float32.

    Args:
        samples: draws an image of a likelihood.
    """
    match row.measure:
        case "nll":
            nll = torch.cat([_nll(trained.model, batch, at, samples) for at, batch in _batches(data.test)])
            return Figure(*_mean(nll), samples)
        case "neg_elbo":
            cost = torch.cat([_neg_elbo(trained.model, batch, at, samples) for at, batch in _batches(data.test)])
            return Figure(*_mean(cost), samples)
        case "mig":
            return Figure(mig(trained.model, data.test))
        case "seconds":
            return Figure(trained.progress.seconds)


@torch.no_grad()
def mig(model: Model, rows: Rows) -> float:
    """MIG of the representation of 10,000 rows drawn at random, the codes in 20 bins (disentanglement_lib's)."""
    generator = torch.Generator(rows.device).manual_seed(SEED)
    chosen = torch.randperm(len(rows), generator=generator, device=rows.device)[:MIG_ROWS]
    batches = [rows.whole(part) for part in chosen.split(AT_ONCE)]
    codes = torch.cat([cast(Tensor, model.represent(_pixels(model, batch, 0), None)) for batch in batches])
    values = value_numbers(rows.factors_of(chosen).cpu().numpy())
    return mutual_information_gap(mutual_information(discretise(codes.cpu().numpy()), values), entropies(values))


@torch.no_grad()
def _nll(model: Model, batch: Batch, at: int, samples: int) -> Tensor:
    likely, x, noise = cast(HasLikelihood, model), _pixels(model, batch, at), _noise(batch, at)
    return importance_weighted(likely, x, model.condition(batch), noise=noise, samples=samples).nll


@torch.no_grad()
def _neg_elbo(model: Model, batch: Batch, at: int, samples: int) -> Tensor:
    likely, x, c = cast(HasLikelihood, model), _pixels(model, batch, at), model.condition(batch)
    epsilon = likely.importance_noise(_noise(batch, at), "neg_elbo", samples)
    return -likely.log_weight(x, c, likely.encode(x, c), epsilon).double().mean(0)


def _batches(rows: Rows) -> list[tuple[int, Batch]]:
    every = torch.arange(len(rows), device=rows.device).split(AT_ONCE)
    return [(at, rows.whole(part)) for at, part in enumerate(every)]


def _pixels(model: Model, batch: Batch, at: int) -> Tensor:
    likelihood: Any = model.config.likelihood
    return observe(batch.images, likelihood, _noise(batch, at))


def _noise(batch: Batch, at: int) -> Noise:
    return Noise.of(batch, seed=SEED, scope="test", step=at)


def _mean(each: Tensor) -> tuple[float, float]:
    return float(each.mean()), float(each.std() / math.sqrt(len(each)))
