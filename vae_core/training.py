"""One optimizer step and one evaluation step. No epochs, no logging, no files."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Adam, Optimizer

from vae_core.batch import Batch
from vae_core.distributed import world_size
from vae_core.likelihoods import observe
from vae_core.models import Model
from vae_core.models.vqvae import VQVAE, VQVAEOutput
from vae_core.noise import Noise
from vae_core.objectives import Terms, objective


class NonFiniteGradient(ArithmeticError):
    """The gradient holds a NaN or an infinity; no parameter was changed."""


def make_optimizer(model: nn.Module, *, learning_rate: float) -> Adam:
    """Adam (arXiv:1412.6980) in its fused form, the fastest on CPU and on GPU."""
    return Adam(model.parameters(), lr=learning_rate, fused=True)


def unwrap(model: nn.Module) -> Model:
    """The model inside a data-parallel wrapper, or `model` itself."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return cast(Model, inner)


def train_step(
    model: nn.Module, batch: Batch, optimizer: Optimizer, *, noise: Noise, learning_rate: float, max_grad_norm: float
) -> Terms:
    """One step down the mean loss of the global batch.

    Args:
        model: from `build_model`, wrapped by `distributed.data_parallel` where there are several ranks.
        batch: this rank's rows; rows of weight 0 do not count.

    Returns:
        The terms of this rank's rows, detached.

    Raises:
        NonFiniteGradient: on every rank at once, before any parameter changes.
    """
    core = unwrap(model)
    x = observe(batch.images, core.config.likelihood, noise)
    output = model(x, batch.labels, noise)
    terms = objective(core.config, output, x)
    # The wrapper averages gradients over the ranks; the mean wanted is over the rows of the global batch.
    loss = (terms.loss * batch.weight).sum() * (world_size() / batch.global_rows)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()
    if not math.isfinite(norm):
        raise NonFiniteGradient(f"gradient norm {norm} at learning rate {learning_rate:.3g}")
    if norm > max_grad_norm:
        clip_grads_with_norm_(model.parameters(), max_grad_norm, torch.tensor(norm))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    if isinstance(core, VQVAE) and isinstance(output, VQVAEOutput):
        core.quantizer.update(output.encoded, output.codes, batch.weight, noise)
    return Terms(terms.loss.detach(), {name: part.detach() for name, part in terms.parts.items()})


@torch.no_grad()
def eval_step(model: Model, batch: Batch, noise: Noise) -> dict[str, Tensor]:
    """The parts of the objective for each row, [B] each, with one draw from the posterior."""
    x = observe(batch.images, model.config.likelihood, noise)
    return dict(objective(model.config, model(x, batch.labels, noise), x).parts)
