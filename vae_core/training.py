"""One optimizer step and one evaluation step. No epochs, no logging, no files."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Adam, Optimizer

from vae_core.batch import Batch
from vae_core.distributed import all_reduce_sum, world_size
from vae_core.likelihoods import observe
from vae_core.models import Model
from vae_core.models.base import Inputs
from vae_core.noise import Noise
from vae_core.objectives import Terms, objective
from vae_core.schedules import weights_at

Precision: TypeAlias = Literal["fp32", "bf16"]
Forward: TypeAlias = Callable[[nn.Module, Inputs], tuple[Any, Terms]]


@dataclass(frozen=True, slots=True)
class Step:
    """What a training step did.

    Attributes:
        terms: of this rank's rows, detached.
        skipped: loss or gradient was not finite on some rank, so that no rank changed its model.
    """

    terms: Terms
    skipped: bool


def make_optimizer(model: nn.Module, *, learning_rate: float) -> Adam:
    """Adam (arXiv:1412.6980) in its fused form, the fastest on CPU and on GPU."""
    return Adam(model.parameters(), lr=learning_rate, fused=True)


def unwrap(model: nn.Module) -> Model:
    """The model inside the wrappers for several ranks, or `model` itself."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return cast(Model, inner.core if isinstance(inner, Joined) else inner)


def prepare(model: Model, batch: Batch, noise: Noise, progress: float) -> Inputs:
    """Everything that a step reads, with all of its randomness drawn.

    Args:
        progress: step / total steps, at which the schedules of the model's configuration are evaluated.

    Raises:
        ValueError: the batch lacks the column that the model is conditioned on.
    """
    condition = model.condition(batch)
    hidden = model.config.condition_dropout
    if condition is not None and model.training and hidden > 0:
        condition = condition * (noise.uniform("condition", 1) >= hidden)
    device = batch.images.device
    return Inputs(
        x=observe(batch.images, model.config.likelihood, noise),
        condition=condition,
        draws=model.draws(noise),
        weights=weights_at(model.config, progress, device),
        progress=torch.tensor(progress, dtype=torch.float32, device=device),
        row_weight=batch.weight,
        global_rows=batch.global_rows,
    )


def forward(model: nn.Module, inputs: Inputs) -> tuple[Any, Terms]:
    """A model's output and its terms: all of a step that has a gradient, pure, without a graph break."""
    output = model(inputs)
    return output, objective(unwrap(model).config, output, inputs)


class Joined(nn.Module):
    """A model and its compiled forward as one module for several ranks: no compiler sees through their wrapper."""

    def __init__(self, core: Model, run: Forward) -> None:
        super().__init__()
        self.core, self.run = core, run

    def forward(self, inputs: Inputs) -> tuple[Any, Terms]:
        return self.run(self.core, inputs)

    @staticmethod
    def call(model: nn.Module, inputs: Inputs) -> tuple[Any, Terms]:
        """`Forward` of a wrapped Joined."""
        done: tuple[Any, Terms] = model(inputs)
        return done


def compiled_forward(*, cuda_graphs: bool = False) -> Forward:
    """`forward` through torch.compile.

    Args:
        cuda_graphs: replay the step's kernels as one graph, which pays for small networks on a GPU.
    """
    mode = "reduce-overhead" if cuda_graphs else "default"
    return cast(Forward, torch.compile(forward, fullgraph=True, dynamic=False, mode=mode))


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """The arithmetic of networks; what must not lose digits (likelihoods, divergences, distances) stays float32."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, torch.bfloat16)


def train_step(
    model: nn.Module,
    batch: Batch,
    optimizer: Optimizer,
    *,
    noise: Noise,
    learning_rate: float,
    max_grad_norm: float,
    progress: float = 0.0,
    precision: Precision = "fp32",
    forward: Forward = forward,
) -> Step:
    """One step down the mean loss of the global batch; none where it is not finite, on all ranks alike.

    Args:
        model: from `build_model`, wrapped by `distributed.data_parallel` where there are several ranks.
        batch: this rank's rows; rows of weight 0 do not count.
        progress: step / total steps.
    """
    core = unwrap(model)
    inputs = prepare(core, batch, noise, progress)
    with autocast(precision, batch.images.device):
        output, terms = forward(model, inputs)
    counted = torch.where(batch.weight > 0, terms.loss, 0.0)  # padding may hold anything
    # The wrapper averages gradients over the ranks; the mean wanted is over the rows of the global batch.
    loss = (counted * batch.weight).sum() * (world_size() / batch.global_rows)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    done = Step(Terms(terms.loss.detach(), {name: part.detach() for name, part in terms.parts.items()}), skipped=False)
    # The gradient is the same on every rank; a loss that is not finite may have a finite gradient on the others.
    if not math.isfinite(all_reduce_sum(loss.detach() + 0 * norm).item()):
        return Step(done.terms, skipped=True)
    if norm > max_grad_norm:
        clip_grads_with_norm_(model.parameters(), max_grad_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    core.update(output, inputs, noise)
    return done


@torch.no_grad()
def eval_step(model: Model, batch: Batch, noise: Noise) -> dict[str, Tensor]:
    """The parts of the objective for each row, [B] each, with one draw from the posterior."""
    _, terms = forward(model, prepare(model, batch, noise, progress=1.0))
    return dict(terms.parts)
