"""Training and evaluation steps: the gradient of the mean loss of the global batch, or no change at all."""

from dataclasses import replace

import pytest
import torch
from core_models import (
    EVERY_KIND,
    FAMILIES,
    assert_same_state,
    digits,
    digits_model,
    inputs_of,
    noise_of,
    sgd,
    snapshot,
    step_once,
    take,
    try_step,
    vae,
)
from torch import Tensor

from vae_core import training
from vae_core.averaging import WeightAverage
from vae_core.batch import Batch
from vae_core.config import ModelConfig, RampConfig
from vae_core.metrics.means import Means
from vae_core.models import Model
from vae_core.training import eval_step, make_optimizer, prepare, unwrap

every_kind = pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND.keys())
every_family = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES.keys())


def moved(model: Model, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """How far each parameter went, which after a step of `sgd` is minus its gradient."""
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


def length(tensors: dict[str, Tensor]) -> float:
    return float(torch.cat([tensor.flatten() for tensor in tensors.values()]).double().norm())


@every_kind
def test_a_step_follows_the_gradient_of_the_mean_loss(config: ModelConfig) -> None:
    model, twin, batch = digits_model(config), digits_model(config), digits(7)
    training.forward(twin, inputs_of(twin, batch))[1].loss.mean().backward()
    before = snapshot(model)
    step_once(model, batch, sgd(model), learning_rate=0.125)
    expected = {name: p.grad for name, p in twin.named_parameters()}
    for name, change in moved(model, before).items():
        if "codebook" in name:  # which the first update starts at encoder outputs
            continue
        torch.testing.assert_close(-change / 0.125, expected[name], rtol=1e-3, atol=1e-3)


@every_kind
def test_rows_of_weight_zero_leave_gradient_and_codebook_as_if_left_out(config: ModelConfig) -> None:
    batch = digits(6)
    repeated = take(batch, torch.tensor([0, 1, 2, 3, 4, 5, 5, 5]), torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 0]))
    white = torch.cat((batch.images, torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)))
    for padded in (repeated, replace(repeated, images=white, position=torch.tensor([0, 1, 2, 3, 4, 5, 6, 9]))):
        plain_model, padded_model = digits_model(config), digits_model(config)
        for step in range(2):
            step_once(plain_model, batch, sgd(plain_model), step=step, learning_rate=1e-3)
            step_once(padded_model, padded, sgd(padded_model), step=step, learning_rate=1e-3)
        for name, tensor in plain_model.state_dict().items():
            torch.testing.assert_close(padded_model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


@every_family
def test_a_step_returns_the_terms_of_each_row_without_a_graph(config: ModelConfig) -> None:
    model, batch = digits_model(config), digits(5)
    with torch.no_grad():
        expected = training.forward(model, inputs_of(model, batch))[1].parts
    terms = step_once(model, batch, sgd(model), learning_rate=1e-3)
    assert terms.parts.keys() == expected.keys()
    for name, part in terms.parts.items():
        torch.testing.assert_close(part, expected[name])
    assert not any(values.requires_grad for values in (terms.loss, *terms.parts.values()))


@every_family
def test_the_learning_rate_of_the_step_is_the_one_given(config: ModelConfig) -> None:
    changes = []
    for rate in (1e-3, 2e-3):
        model = digits_model(config)
        before = snapshot(model)
        step_once(model, digits(5), sgd(model), learning_rate=rate)
        changes.append(length(moved(model, before)))
    assert changes[1] == pytest.approx(2 * changes[0], rel=1e-3)


@pytest.mark.parametrize("share", [0.01, 0.9])
@every_family
def test_a_long_gradient_is_cut_to_the_norm_allowed_and_keeps_its_direction(config: ModelConfig, share: float) -> None:
    free, cut = digits_model(config), digits_model(config)
    before = snapshot(free)
    step_once(free, digits(5), sgd(free))
    whole = moved(free, before)
    step_once(cut, digits(5), sgd(cut), max_grad_norm=share * length(whole))
    short = moved(cut, before)
    assert length(short) == pytest.approx(share * length(whole), rel=1e-3)
    difference = {name: short[name] - share * whole[name] for name in whole}
    assert length(difference) < 1e-3 * length(short)


@every_family
def test_a_gradient_within_the_norm_allowed_is_not_touched(config: ModelConfig) -> None:
    free, allowed = digits_model(config), digits_model(config)
    before = snapshot(free)
    step_once(free, digits(5), sgd(free))
    norm = length(moved(free, before))
    step_once(allowed, digits(5), sgd(allowed), max_grad_norm=norm * 1.01)
    assert_same_state(free.state_dict(), allowed.state_dict())


@every_kind
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped_and_changes_nothing(config: ModelConfig, bad: float) -> None:
    model = digits_model(config)
    optimizer = make_optimizer(model, learning_rate=1e-3)
    step_once(model, digits(16), optimizer, learning_rate=1e-3)
    before = snapshot(model)
    moments = {name: state["exp_avg"].clone() for name, state in zip("ab", optimizer.state.values(), strict=False)}
    last = list(model.parameters())[-1]
    hook = last.register_hook(lambda gradient: gradient + bad)
    average, means = WeightAverage(model, decay=0.9), Means()
    means.add({"x": torch.ones(2)}, torch.ones(2))
    done = try_step(model, digits(16, start=16), optimizer, step=1, learning_rate=0.5)
    assert done.skipped
    assert_same_state(before, model.state_dict())
    average.update(model, ~done.skipped)
    means.add({"x": torch.full((16,), bad)}, torch.ones(16) * ~done.skipped)
    assert_same_state(before, average.model.state_dict())
    assert (average.updates, means.compute(), means.state_dict()["weight"]) == (0, {"x": 1.0}, 2.0)
    after = {name: state["exp_avg"] for name, state in zip("ab", optimizer.state.values(), strict=False)}
    assert_same_state(moments, after)
    hook.remove()
    step_once(model, digits(16, start=16), optimizer, step=1, learning_rate=1e-3)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@every_kind
def test_training_is_reproducible_bit_for_bit(config: ModelConfig) -> None:
    states = []
    for _ in range(2):
        model = digits_model(config)
        optimizer = make_optimizer(model, learning_rate=1e-3)
        for step in range(3):
            step_once(model, digits(16, start=16 * step), optimizer, step=step, learning_rate=1e-3)
        states.append(model.state_dict())
    assert_same_state(*states)


@every_kind
def test_training_reduces_the_loss(config: ModelConfig) -> None:
    model, batch = digits_model(config), digits(64)
    optimizer = make_optimizer(model, learning_rate=1e-2)
    losses = [
        step_once(model, batch, optimizer, step=step, learning_rate=1e-2).loss.mean().item() for step in range(40)
    ]
    assert sum(losses[-5:]) / 5 < min(0.95 * losses[0], losses[0] - 3)


@every_kind
def test_evaluation_changes_nothing_and_repeats(config: ModelConfig) -> None:
    model, batch = digits_model(config).eval(), digits(6)
    before = snapshot(model)
    once, again = (eval_step(model, batch, noise_of(batch, scope="val")) for _ in range(2))
    assert_same_state(before, model.state_dict())
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not any(value.requires_grad for value in once.values())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_skipped_though_its_gradient_is(bad: float) -> None:
    def spoilt(model: torch.nn.Module, inputs: training.Inputs) -> tuple[object, training.Terms]:
        output, terms = training.forward(model, inputs)
        return output, training.Terms(terms.loss + torch.tensor([0.0, bad, 0.0, 0.0]), terms.parts)

    model = digits_model(FAMILIES["vae"])
    before = snapshot(model)
    done = try_step(model, digits(4), sgd(model), forward=spoilt)
    assert done.skipped
    assert torch.isfinite(done.terms.loss).tolist() == [True, False, True, True]
    assert_same_state(before, model.state_dict())


def test_padding_that_is_not_finite_does_no_harm() -> None:
    def spoilt(model: torch.nn.Module, inputs: training.Inputs) -> tuple[object, training.Terms]:
        output, terms = training.forward(model, inputs)
        bad = torch.where(inputs.row_weight > 0, 0.0, torch.inf)
        return output, training.Terms(terms.loss + bad, terms.parts)

    model, batch = (
        digits_model(FAMILIES["vae"]),
        take(digits(3), torch.tensor([0, 1, 2, 2]), torch.tensor([1.0, 1, 1, 0])),
    )
    assert not try_step(model, batch, sgd(model), learning_rate=1e-3, forward=spoilt).skipped


@every_kind
def test_a_step_has_no_graph_break_and_the_same_terms_when_compiled(config: ModelConfig) -> None:
    torch.compiler.reset()
    model, batch = digits_model(config), digits(6)
    compiled = torch.compile(training.forward, fullgraph=True, backend="aot_eager")
    for step in range(2):
        inputs = inputs_of(model, batch, step=step, progress=step / 2)
        (_, expected), (_, found) = training.forward(model, inputs), compiled(model, inputs)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-4)
        found.loss.sum().backward()


def test_scheduled_weights_are_those_of_the_progress_without_a_new_compilation() -> None:
    torch.compiler.reset()
    seen = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(training.forward, fullgraph=True, backend=seen)
    model, batch = digits_model(vae(beta=RampConfig(kind="linear", start=0.0, end=2.0))), digits(4)
    for progress in (0.0, 0.25, 0.5, 1.0):
        _, terms = compiled(model, inputs_of(model, batch, progress=progress))
        expected = terms.parts["distortion_nats"] + 2 * progress * terms.parts["rate_nats"]
        torch.testing.assert_close(terms.loss, expected)
    assert seen.frame_count == 1


@every_kind
def test_bf16_networks_keep_float32_terms(config: ModelConfig) -> None:
    model, twin, batch = digits_model(config), digits_model(config), digits(8)
    exact = step_once(twin, batch, sgd(twin), learning_rate=0.0)
    found = step_once(model, batch, sgd(model), learning_rate=1e-3, precision="bf16")
    for name, value in found.parts.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.mean(), exact.parts[name].mean(), rtol=0.1, atol=1.0)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_condition_dropout_hides_the_condition_of_its_share_of_training_rows_only() -> None:
    model, batch = digits_model(vae(condition="label", condition_dropout=0.25)), digits(1000)
    hidden = prepare(model.train(), batch, noise_of(batch), 0.0).condition
    assert hidden is not None
    assert 0.2 < float((hidden.sum(1) == 0).float().mean()) < 0.3
    shown = prepare(model.eval(), batch, noise_of(batch), 0.0).condition
    assert shown is not None
    assert (shown.sum(1) == 1).all()


def test_an_average_follows_the_weights_and_copies_buffers() -> None:
    model = digits_model(FAMILIES["vqvae"])
    average = WeightAverage(model, decay=0.9)
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(30):
        step_once(model, digits(16, start=16 * step), sgd(model), step=step, learning_rate=1e-4)
        average.update(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * p.detach() for name, p in model.named_parameters()}
    for name, parameter in average.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=1e-5)
        assert not parameter.requires_grad
    for name, buffer in average.model.named_buffers():
        assert torch.equal(buffer, dict(model.named_buffers())[name])


def test_evaluation_noise_belongs_to_its_scope_and_step() -> None:
    model, batch = digits_model(FAMILIES["vae"]), digits(6)
    found = [
        eval_step(model, batch, noise_of(batch, scope=scope, step=step))["neg_elbo_nats"]
        for scope, step in (("val", 0), ("val", 1), ("test", 0))
    ]
    assert len({tuple(values.tolist()) for values in found}) == 3


def test_the_model_inside_no_wrapper_is_itself() -> None:
    model = digits_model(FAMILIES["vae"])
    assert unwrap(model) is model


def test_the_optimizer_holds_every_parameter() -> None:
    model = digits_model(FAMILIES["vqvae"])
    optimizer = make_optimizer(model, learning_rate=0.5)
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert group["lr"] == 0.5


def test_a_batch_on_its_device_is_not_copied() -> None:
    batch = digits(3)
    assert batch.to(torch.device("cpu")) is batch


@pytest.mark.parametrize("labelled", [True, False])
def test_a_batch_moves_as_a_whole(labelled: bool) -> None:
    batch = digits(3) if labelled else replace(digits(3), labels=None)
    there = batch.to(torch.device("meta"))
    assert isinstance(there, Batch)
    tensors = (there.images, there.weight, there.position, *([there.labels] if labelled else []))
    assert {tensor.device.type for tensor in tensors if tensor is not None} == {"meta"}
    assert there.global_rows == 3
    assert (there.labels is not None) == labelled
