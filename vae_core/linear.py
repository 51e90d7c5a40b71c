"""A linear layer that multiplies float32 matrices as fast as the CPU can."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.mkl.is_available()
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
)


class Linear(nn.Linear):
    """`nn.Linear`, with the same parameters and initial values.

    For float32 on a CPU torch calls MKL, which leaves AVX-512 unused on processors that are not Intel's; oneDNN, which
    torch comes with too, does not: twice as fast on an AMD EPYC of family 26. The sums are rounded in another order.
    Where there is no AVX-512, MKL takes two thirds of oneDNN's time, and is left to it.
    """

    def forward(self, input: Tensor) -> Tensor:
        if _wanted(input, self.weight):
            return cast(Tensor, _Product.apply(input, self.weight, self.bias))  # type: ignore[no-untyped-call]
        return super().forward(input)


class _Product(Function):
    """input [B, I] x weight [O, I] transposed + bias [O], by oneDNN."""

    @staticmethod
    def forward(ctx: FunctionCtx, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if of_input else None,
            _product(gradient.t(), input.t()) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [M, K] x b [N, K] transposed + bias [N]."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise.default(a, b, bias, "none", [], ""))


def _wanted(input: Tensor, weight: Tensor) -> bool:
    return (
        ONEDNN
        and input.device.type == "cpu"
        and input.dim() == 2
        and input.numel() > 0
        and input.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )
