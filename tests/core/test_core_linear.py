"""Our linear layer is torch's, to within rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vae_core import linear
from vae_core.linear import Linear

sizes = st.tuples(st.integers(1, 70), st.integers(1, 90), st.integers(1, 90))
needs_onednn = pytest.mark.skipif(not linear.ONEDNN, reason="no AVX-512, or no oneDNN beside MKL")


def pair(inputs: int, outputs: int, *, bias: bool = True) -> tuple[Linear, nn.Linear]:
    torch.manual_seed(0)
    ours, theirs = Linear(inputs, outputs, bias=bias), nn.Linear(inputs, outputs, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def results(layer: nn.Linear, x: torch.Tensor, slope: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    out = layer(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()], slope)]


@settings(max_examples=60)
@given(sizes, st.booleans(), st.booleans())
def test_output_and_gradients_are_those_of_torch(size: tuple[int, int, int], bias: bool, transposed: bool) -> None:
    rows, inputs, outputs = size
    ours, theirs = pair(inputs, outputs, bias=bias)
    x, slope = torch.randn(rows, inputs), torch.randn(rows, outputs)
    if transposed:
        x, slope = x.t().contiguous().t(), slope.t().contiguous().t()
    for got, expected in zip(results(ours, x, slope), results(theirs, x, slope), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        assert got.is_contiguous() or not linear.ONEDNN  # torch's own gradients may lie transposed


def test_it_starts_as_torchs_does() -> None:
    torch.manual_seed(3)
    expected = nn.Linear(5, 4).state_dict()
    torch.manual_seed(3)
    assert all(torch.equal(value, expected[name]) for name, value in Linear(5, 4).state_dict().items())


@needs_onednn
def test_float32_goes_through_onednn_and_frozen_parameters_get_no_gradient() -> None:
    ours, _ = pair(5, 4)
    out = ours(torch.randn(3, 5))
    assert "_Product" in type(out.grad_fn).__name__
    ours.weight.requires_grad_(False)
    ours(torch.randn(3, 5)).sum().backward()
    assert ours.weight.grad is None
    assert ours.bias.grad is not None


@pytest.mark.parametrize("shape", [(0, 5), (5,), (2, 3, 5)])
def test_other_shapes_go_torchs_way(shape: tuple[int, ...]) -> None:
    ours, theirs = pair(5, 4)
    x = torch.randn(shape)
    assert torch.equal(ours(x), theirs(x))


def test_other_precisions_go_torchs_way() -> None:
    ours, theirs = pair(5, 4)
    x = torch.randn(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.double()(x.double()), theirs.double()(x.double()))


def test_a_compiler_and_a_tracer_see_torchs() -> None:
    ours, theirs = pair(5, 4)
    x = torch.randn(3, 5)
    traced = torch.export.export(ours, (x,))
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [torch.ops.aten.linear.default]
    torch.testing.assert_close(traced.module()(x), theirs(x))
