"""One optimizer step and one evaluation step. No epochs, no logging, no files."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer

from vae_core.batch import Batch
from vae_core.config import HierarchicalConfig, ModelConfig, VAEConfig
from vae_core.descent import descend
from vae_core.distributed import world_size
from vae_core.likelihoods import observe
from vae_core.models import Model
from vae_core.models.base import Followed, Inputs
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
        skipped: bool, 0-dim: loss or gradient was not finite on some rank, so that no rank changed its model. To read
            it is to wait for the device.
    """

    terms: Terms
    skipped: Tensor


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
    if model.training:
        condition = with_dropout(condition, model.config.condition_dropout, noise)
    device = batch.images.device
    weights = weights_at(model.config, progress, torch.device("cpu"))
    return Inputs(
        x=observe(batch.images, model.config.likelihood, noise),
        condition=condition,
        draws=model.draws(noise),
        # Made on a device from a number, a tensor is a copy that the host waits for.
        weights={name: weight.to(device, non_blocking=True) for name, weight in weights.items()},
        progress=torch.full((), progress, dtype=torch.float32, device=device),
        row_weight=batch.weight,
        global_rows=batch.global_rows,
    )


def with_dropout(condition: Tensor | None, share: float, noise: Noise) -> Tensor | None:
    """[B, E] with zeros in this share of the rows, so that a model learns to do without its condition too."""
    if condition is None or share == 0:
        return condition
    return condition * (noise.uniform("condition", 1) >= share)


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
    """`forward` through torch.compile. What was compiled before is forgotten: a function may be compiled a few times.

    Args:
        cuda_graphs: replay the step's kernels as one graph, which pays for small networks on a GPU.
    """
    torch.compiler.reset()  # else the ninth model of a process would be refused, or run uncompiled
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
    max_rows: int | None = None,
) -> Step:
    """One step down the mean loss of the global batch; none where it is not finite, on all ranks alike.

    The host never waits for the device here, but in the first two steps of a model with a codebook.

    Args:
        model: from `build_model`, wrapped by `distributed.data_parallel` where there are several ranks.
        batch: this rank's rows; rows of weight 0 do not count.
        optimizer: from `make_optimizer`; with one that is not fused, each step waits for the device.
        progress: step / total steps.
        max_rows: of one pass through the model; of more, the gradients are added up. All but rounding stays the same.

    Raises:
        ValueError: there are more than `max_rows`, and the objective looks at all of them together.
    """
    core = unwrap(model)
    inputs = prepare(core, batch, noise, progress)
    optimizer.zero_grad(set_to_none=True)
    found = _passes(model, inputs, precision, forward, max_rows)
    taken = descend(optimizer, found.loss, learning_rate=learning_rate, max_grad_norm=max_grad_norm)
    core.update(found.followed, batch.weight, noise, taken)
    return Step(found.terms, skipped=~taken)


def rehearse(
    model: nn.Module, batch: Batch, noise: Noise, *, precision: Precision, forward: Forward, max_rows: int | None
) -> None:
    """A step's passes, forward and back, that change nothing.

    After its first backward pass the wrapper for several ranks lays the gradients out anew, in the order in which they
    came, and that decides in which order more than two ranks add them up. So a run that resumes would differ in the
    last bits of one step, unless each run rehearses it.
    """
    _passes(model, prepare(unwrap(model), batch, noise, progress=0.0), precision, forward, max_rows)
    model.zero_grad(set_to_none=True)


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one pass or several leave, without a graph: a share of the loss, 0-dim, terms, and what `update` reads."""

    loss: Tensor
    terms: Terms
    followed: Followed


def _passes(model: nn.Module, inputs: Inputs, precision: Precision, forward: Forward, max_rows: int | None) -> _Pass:
    """Add the gradient of the loss of `inputs` to what the parameters hold, in as many passes as it takes."""
    rows = len(inputs.x)
    if max_rows is None or rows <= max_rows:
        return _one_pass(model, inputs, precision, forward)
    check_divisible(unwrap(model).config)
    done = []
    for start in range(0, rows, max_rows):
        last = start + max_rows >= rows
        with nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            one = _one_pass(model, _rows(inputs, slice(start, start + max_rows)), precision, forward)
        done.append(_map(one, Tensor.clone))  # CUDA graphs write the next pass over it
    return _joined(done)


def _one_pass(model: nn.Module, inputs: Inputs, precision: Precision, forward: Forward) -> _Pass:
    with autocast(precision, inputs.x.device):
        output, terms = forward(model, inputs)
    counted = torch.where(inputs.row_weight > 0, terms.loss, 0.0)  # padding may hold anything
    # The wrapper averages gradients over the ranks; the mean wanted is over the rows of the global batch.
    loss = (counted * inputs.row_weight).sum() * (world_size() / inputs.global_rows)
    loss.backward()
    return _map(_Pass(loss, terms, unwrap(model).followed(output, inputs)), Tensor.detach)


def check_divisible(config: ModelConfig) -> None:
    """Whether the loss of a batch is the sum of the losses of its parts.

    Raises:
        ValueError: it is not, because of a field, which the message names.
    """
    match config:
        case VAEConfig(total_correlation=value) if value is not None:
            key = "total_correlation"
        case VAEConfig(free_bits=value) | HierarchicalConfig(free_bits=value) if value > 0:
            key = "free_bits"
        case HierarchicalConfig(balance=True):
            key = "balance"
        case _:
            return
    raise ValueError(f"{key}: it looks at all rows of a batch together, so they cannot pass in parts")


def _rows(inputs: Inputs, rows: slice) -> Inputs:
    """Some rows, with the draws that they have in the whole."""
    return replace(
        inputs,
        x=inputs.x[rows],
        condition=None if inputs.condition is None else inputs.condition[rows],
        draws={name: drawn[rows] for name, drawn in inputs.draws.items()},
        row_weight=inputs.row_weight[rows],
    )


def _map(done: _Pass, change: Callable[[Tensor], Tensor]) -> _Pass:
    terms = Terms(change(done.terms.loss), {name: change(part) for name, part in done.terms.parts.items()})
    return _Pass(change(done.loss), terms, {name: change(seen) for name, seen in done.followed.items()})


def _joined(done: Sequence[_Pass]) -> _Pass:
    """The rows of several passes, one after the other."""
    parts = {name: torch.cat([one.terms.parts[name] for one in done]) for name in done[0].terms.parts}
    followed = {name: torch.cat([one.followed[name] for one in done]) for name in done[0].followed}
    loss = torch.stack([one.loss for one in done]).sum()
    return _Pass(loss, Terms(torch.cat([one.terms.loss for one in done]), parts), followed)


@torch.no_grad()
def eval_step(model: Model, batch: Batch, noise: Noise) -> dict[str, Tensor]:
    """The parts of the objective for each row, [B] each, with one draw from the posterior."""
    _, terms = forward(model, prepare(model, batch, noise, progress=1.0))
    return dict(terms.parts)
