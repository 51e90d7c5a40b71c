"""Collectives that do nothing outside a process group, so that one code path serves one process and many."""

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def all_gather_rows(tensor: Tensor) -> Tensor:
    """[B, ...] of every rank, in the order of the ranks, joined to [ranks x B, ...]; gradients flow back to each.

    Every rank must have the same number of rows.
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    """Rows of all ranks; each rank's gradient is the sum of what all ranks ask of its rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = all_reduce_sum(gradients[0].clone(memory_format=torch.contiguous_format))
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def from_rank_zero(value: int) -> int:
    """Rank 0's `value`, on every rank."""
    return int(all_reduce_sum(torch.tensor(value if rank() == 0 else 0, device=_device())))


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with gradients averaged over the ranks; itself where there is one rank.

    Buffers are not broadcast: the codebook's statistics are summed over the ranks by the code that updates them.
    """
    if world_size() == 1:
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the name that replaces it is not in every torch we support
        return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)


def _device() -> torch.device:
    """Where the process group's tensors live: NCCL takes no CPU tensors."""
    on_gpu = world_size() > 1 and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
