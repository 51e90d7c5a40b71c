"""Collectives that do nothing outside a process group, so that one code path serves one process and many."""

import threading
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Communication:
    """Seconds in which at least one collective of this process was under way, in any of its threads.

    NCCL's run on the device while the host goes on: of these it is the time that the host takes to start them.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._under_way, self._since, self._lock = 0, 0.0, threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._since = self._since if self._under_way else time.perf_counter()
            self._under_way += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._under_way -= 1
            self.seconds += 0.0 if self._under_way else time.perf_counter() - self._since


communication = Communication()


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if world_size() > 1 and torch.compiler.is_compiling():
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    elif world_size() > 1:
        with communication:
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


def sums(values: Sequence[int]) -> list[int]:
    """The sum over all ranks of each of `values`, on the host: it waits for them."""
    found: list[int] = all_reduce_sum(torch.tensor(values, device=_device())).tolist()
    return found


def from_rank_zero(value: int) -> int:
    """Rank 0's `value`, on every rank."""
    return sums([value if rank() == 0 else 0])[0]


def barrier() -> None:
    if world_size() > 1:
        with communication:
            dist.barrier()


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with gradients averaged over the ranks; itself where there is one rank.

    Buffers are not broadcast: the codebook's statistics are summed over the ranks by the code that updates them.
    `static_graph` would not average at all, and would not say so: it finds no tensors in the dataclasses that models
    return. It pays only where parameters go unused, and none does here.
    """
    if world_size() == 1:
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the name that replaces it is not in every torch we support
        wrapped = DistributedDataParallel(
            model, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    # Told of kernels with one input channel, whose stride along it means nothing.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    if device.type == "cpu":
        wrapped.register_comm_hook(None, _timed_mean)
    return wrapped


def _timed_mean(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """What the wrapper does by itself, divide and sum, with `communication` knowing of it."""
    communication.__enter__()

    def received(done: torch.futures.Future[list[Tensor]]) -> Tensor:
        communication.__exit__()
        return done.value()[0]

    work = dist.all_reduce(bucket.buffer().div_(world_size()), async_op=True)
    reduced: torch.futures.Future[Tensor] = work.get_future().then(received)
    return reduced


def _device() -> torch.device:
    """Where the process group's tensors live: NCCL takes no CPU tensors."""
    on_gpu = world_size() > 1 and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
