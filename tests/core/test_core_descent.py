"""A step that waits for no device, in one pass or in several, and compiled for any number of models."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from core_models import (
    EVERY_KIND,
    assert_same_state,
    digits,
    digits_model,
    hierarchical,
    noise_of,
    sgd,
    snapshot,
    step_once,
    take,
    try_step,
    vae,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from vae_core import descent, training
from vae_core.averaging import WeightAverage
from vae_core.config import ModelConfig
from vae_core.config.priors import PixelCNNConfig
from vae_core.descent import descend
from vae_core.metrics.means import Means
from vae_core.models import Model
from vae_core.priors import build_prior, prior_step
from vae_core.training import compiled_forward, make_optimizer

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "_unique2")
COUPLED = ("vae-total-correlation", "hierarchical", "hierarchical-label")
WHOLE = {name: config for name, config in EVERY_KIND.items() if name not in COUPLED}
WHOLE["hierarchical"] = hierarchical(balance=False)
every_kind = pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND.keys())


class NoWaiting(TorchDispatchMode):
    """Operations whose result the host must know are an error: on a GPU it would wait for the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        assert name not in WAITING, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), "a mask waits for its count"
        return function(*args, **(kwargs or {}))


@contextmanager
def no_waiting(model: Model) -> Iterator[None]:
    """No operation of the block waits, but the check of labels, which there is on CPUs alone.

    Gradients are cut as on a GPU, where nobody looks whether they are too long.
    """
    conditioner = model.conditioner

    def unwatched(known: Any) -> Any:
        with _disable_current_modes():
            return conditioner(known)

    with pytest.MonkeyPatch.context() as monkeypatch, NoWaiting():
        monkeypatch.setattr(descent, "FREE_TO_LOOK", frozenset())
        if conditioner is not None:
            monkeypatch.setattr(model, "conditioner", unwatched)
        yield


def test_an_operation_that_waits_is_found() -> None:
    tensor = torch.tensor([1.0, 2.0])
    for wait in (lambda: tensor.sum().item(), lambda: bool(tensor[0] > 0), lambda: tensor[tensor > 1], tensor.nonzero):
        with pytest.raises(AssertionError, match="wait"), NoWaiting():
            wait()


@pytest.mark.parametrize(("name", "max_rows"), [*((name, None) for name in EVERY_KIND), *((name, 5) for name in WHOLE)])
def test_a_step_waits_for_no_device(name: str, max_rows: int | None) -> None:
    """Once a codebook has started: it looks in its first two steps."""
    config = (EVERY_KIND if max_rows is None else WHOLE)[name]
    model, means = digits_model(config), Means()
    optimizer, average = make_optimizer(model, learning_rate=1e-3), WeightAverage(model, decay=0.9)
    for step in range(4):
        batch = digits(16, start=16 * step)
        if step < 2:
            try_step(model, batch, optimizer, step=step, learning_rate=1e-3, max_rows=max_rows)
            continue
        with no_waiting(model):
            done = try_step(model, batch, optimizer, step=step, learning_rate=1e-3, max_rows=max_rows)
            average.update(model, ~done.skipped)
            means.add(done.terms.parts, batch.weight * ~done.skipped)
    assert average.updates == 2


def test_a_step_of_a_prior_waits_for_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = build_prior(PixelCNNConfig(channels=4, layers=2, dropout=0.1), ((2, 3),), 4)
    optimizer = make_optimizer(prior, learning_rate=1e-3)
    batch, codes = digits(5), (torch.randint(4, (5, 2, 3)),)
    options: dict[str, Any] = {"row_weight": torch.ones(5), "learning_rate": 1e-3, "max_grad_norm": 1.0}
    monkeypatch.setattr(descent, "FREE_TO_LOOK", frozenset())
    with NoWaiting():
        done = prior_step(prior, codes, None, optimizer, noise=noise_of(batch), **options)
    assert not done.skipped


@pytest.mark.parametrize("longest", [1e-2, 1e9])
def test_gradients_are_cut_to_the_same_bits_whether_the_host_looks_or_not(
    longest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    for free in ({"cpu"}, set[str]()):
        monkeypatch.setattr(descent, "FREE_TO_LOOK", frozenset(free))
        model = digits_model(vae())
        optimizer = make_optimizer(model, learning_rate=1e-3)
        for step in range(3):
            step_once(model, digits(8, start=8 * step), optimizer, step=step, max_grad_norm=longest)
        states.append(model.state_dict())
    assert_same_state(*states)


def test_an_optimizer_that_is_not_fused_skips_too() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    for factor, expected in ((1.0, 0.5), (float("nan"), 0.5), (float("inf"), 0.5), (1.0, 0.0)):
        optimizer = torch.optim.SGD([weight], lr=1.0)
        loss = weight.sum() * factor
        optimizer.zero_grad()
        loss.backward()
        taken = descend(optimizer, loss, learning_rate=0.5, max_grad_norm=1e9)
        assert taken.item() is (factor == 1.0)
        assert weight.tolist() == [expected] * 3


@every_kind
def test_a_codebook_whose_first_step_is_skipped_starts_at_the_next(config: ModelConfig) -> None:
    model, fresh = digits_model(config), digits_model(config)
    before = snapshot(model)
    optimizer = make_optimizer(model, learning_rate=1e-3)
    hook = next(model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    assert try_step(model, digits(16), optimizer, learning_rate=1e-3).skipped
    assert_same_state(before, model.state_dict())
    hook.remove()
    step_once(model, digits(16), optimizer, learning_rate=1e-3)
    step_once(fresh, digits(16), make_optimizer(fresh, learning_rate=1e-3), learning_rate=1e-3)
    assert_same_state(fresh.state_dict(), model.state_dict())


# Several passes a step


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=5)
@given(rows=st.integers(1, 12), max_rows=st.integers(1, 13), padding=st.integers(0, 2), seed=st.integers(0, 99))
def test_rows_that_pass_in_parts_give_the_step_of_the_whole(
    name: str, rows: int, max_rows: int, padding: int, seed: int
) -> None:
    """Weights, codebooks, running statistics and the terms of each row; with padding at the end."""
    whole, parts = digits_model(WHOLE[name], seed), digits_model(WHOLE[name], seed)
    for step in range(2):
        order = torch.arange(rows + padding).clamp(max=rows - 1)
        weight = (torch.arange(rows + padding) < rows).float()
        batch = take(digits(rows, start=seed + 12 * step), order, weight)
        expected = step_once(whole, batch, sgd(whole), step=step, learning_rate=1e-3)
        found = step_once(parts, batch, sgd(parts), step=step, learning_rate=1e-3, max_rows=max_rows)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-3)
        assert found.parts.keys() == expected.parts.keys()
        for part, values in expected.parts.items():
            torch.testing.assert_close(found.parts[part], values, rtol=1e-4, atol=1e-3)
    for key, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], tensor, rtol=1e-4, atol=1e-5)


def test_no_more_rows_than_allowed_pass_at_once_and_the_optimizer_steps_once() -> None:
    sizes: list[int] = []

    def counted(model: torch.nn.Module, inputs: training.Inputs) -> Any:
        sizes.append(len(inputs.x))
        return training.forward(model, inputs)

    model = digits_model(vae())
    optimizer = make_optimizer(model, learning_rate=1e-3)
    step_once(model, digits(11), optimizer, learning_rate=1e-3, max_rows=4, forward=counted)
    assert sizes == [4, 4, 3]
    assert [state["step"].item() for state in optimizer.state.values()] == [1.0] * len(optimizer.state)


def test_a_bad_row_in_any_part_skips_the_whole_step() -> None:
    for row in (0, 5, 10):
        model, batch = digits_model(vae()), digits(11)
        image = training.prepare(model, batch, noise_of(batch), 0.0).x[row]

        def spoilt(model: torch.nn.Module, inputs: training.Inputs, image: Tensor = image) -> Any:
            output, terms = training.forward(model, inputs)
            bad = torch.where((inputs.x == image).flatten(1).all(1), torch.inf, 0.0)
            return output, training.Terms(terms.loss + bad, terms.parts)

        before = snapshot(model)
        done = try_step(model, batch, sgd(model), max_rows=4, forward=spoilt)
        assert done.skipped
        assert torch.isfinite(done.terms.loss).logical_not().nonzero().flatten().tolist() == [row]
        assert_same_state(before, model.state_dict())


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (vae(total_correlation=4.0), "total_correlation"),
        (vae(free_bits=0.1), "free_bits"),
        (hierarchical(free_bits=0.1, balance=False), "free_bits"),
        (hierarchical(), "balance"),
    ],
)
def test_an_objective_of_the_batch_as_a_whole_is_refused_by_its_key(config: ModelConfig, key: str) -> None:
    model = digits_model(config)
    with pytest.raises(ValueError, match=f"^{key}: .*cannot pass in parts"):
        try_step(model, digits(6), sgd(model), max_rows=5)
    assert not try_step(model, digits(5), sgd(model), learning_rate=1e-3, max_rows=5).skipped, "one part is whole"


# Compilation


def test_any_number_of_models_is_compiled_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them anew: torch compiles one function eight times and no more."""
    seen = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=seen))
    for latents in range(2, 12):
        model = digits_model(vae(latent_dim=latents))
        step_once(model, digits(4), sgd(model), learning_rate=1e-3, forward=compiled_forward())
    assert seen.frame_count == 10
