"""One optimizer step of a prior. No epochs, no logging, no files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from vae_core.descent import descend
from vae_core.distributed import world_size
from vae_core.noise import Noise
from vae_core.priors.pixelcnn import CodePrior


@dataclass(frozen=True, slots=True)
class PriorStep:
    """What a step did.

    Attributes:
        nll: nats, [B, levels], of this rank's rows before the step, with its dropout; detached.
        skipped: bool, 0-dim: loss or gradient was not finite on some rank, so that no rank changed its prior.
    """

    nll: Tensor
    skipped: Tensor


def prior_step(
    prior: nn.Module,
    codes: Sequence[Tensor],
    c: Tensor | None,
    optimizer: Optimizer,
    *,
    noise: Noise,
    row_weight: Tensor,
    learning_rate: float,
    max_grad_norm: float,
) -> PriorStep:
    """One step down the mean cost of the global batch; none where it is not finite, on all ranks alike.

    Args:
        prior: a CodePrior, wrapped by `distributed.data_parallel` where there are several ranks.
        codes: int64 [B, *grid] of each level, this rank's rows.
        c: [B, E], or None.
        noise: of this step; it knows how many rows the global batch has.
        row_weight: [B]; 1 for a row of the data, 0 for padding.
    """
    core = cast(CodePrior, prior.module if isinstance(prior, DistributedDataParallel) else prior)
    optimizer.zero_grad(set_to_none=True)
    nll = prior(codes, c, core.draws(noise))
    # The wrapper averages gradients over the ranks; the mean wanted is over the rows of the global batch.
    loss = (nll.sum(1) * row_weight).sum() * (world_size() / noise.rows)
    loss.backward()
    taken = descend(optimizer, loss, learning_rate=learning_rate, max_grad_norm=max_grad_norm)
    return PriorStep(nll.detach(), skipped=~taken)
