"""Noise is a function of seed, scope, purpose, step and position; no step reads or moves a global generator."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from core_models import EVERY_KIND, digits, digits_model, inputs_of, noise_of, step_once, take
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_core.config import ModelConfig
from vae_core.metrics.likelihood import importance_weighted
from vae_core.models import HasLikelihood, HasPrior
from vae_core.models.categorical import Categorical
from vae_core.noise import Noise
from vae_core.sampling import interpolate, reconstruct, sample
from vae_core.training import eval_step

every_kind = pytest.mark.parametrize("config", EVERY_KIND.values(), ids=EVERY_KIND.keys())
PURPOSES = ("posterior", "binarise", "restart", "importance/0", "importance/10")


def noise(position: torch.Tensor, rows: int, *, seed: int = 0, scope: str = "train", step: int = 0) -> Noise:
    return Noise(seed=seed, scope=scope, step=step, position=position, rows=rows)


@contextmanager
def global_generators_untouched() -> Iterator[None]:
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**40), st.integers(0, 2**31), st.sampled_from(PURPOSES))
def test_ranks_draw_together_what_one_rank_draws(rows: int, world: int, seed: int, step: int, purpose: str) -> None:
    every = torch.arange(rows)
    for draw in (Noise.normal, Noise.uniform):
        whole = draw(noise(every, rows, seed=seed, step=step), purpose, 2, 3)
        for rank in range(world):
            own = draw(noise(every[rank::world], rows, seed=seed, step=step), purpose, 2, 3)
            assert torch.equal(own, whole[rank::world])
    levels = torch.arange(6 * rows, dtype=torch.uint8).view(rows, 2, 3)
    whole = noise(every, rows, seed=seed, step=step).binary(purpose, levels)
    for rank in range(world):
        own = noise(every[rank::world], rows, seed=seed, step=step).binary(purpose, levels[rank::world])
        assert torch.equal(own, whole[rank::world])


@settings(max_examples=20)
@given(st.permutations(range(9)))
def test_a_row_keeps_its_noise_wherever_it_stands(order: list[int]) -> None:
    whole = noise(torch.arange(9), 9).normal("posterior", 4)
    assert torch.equal(noise(torch.tensor(order), 9).normal("posterior", 4), whole[order])


def test_integers_are_the_same_on_every_rank_and_below_their_bound() -> None:
    first = noise(torch.tensor([0, 2]), 4).integers("restart", 10, 1000)
    second = noise(torch.tensor([1, 3]), 4).integers("restart", 10, 1000)
    assert torch.equal(first, second)
    assert first.unique().tolist() == list(range(10))


def test_the_same_key_gives_the_same_numbers() -> None:
    once, again = (noise(torch.arange(5), 5, seed=7, step=3).normal("posterior", 6) for _ in range(2))
    assert torch.equal(once, again)


def test_seeds_scopes_steps_purposes_and_rows_all_differ() -> None:
    drawn = {
        tuple(row.tolist())
        for seed in (0, 1, 2**40)
        for scope in ("train", "val", "test")
        for step in (0, 1, 2, 2**31)
        for purpose in PURPOSES
        for row in noise(torch.arange(3), 3, seed=seed, scope=scope, step=step).normal(purpose, 2)
    }
    assert len(drawn) == 3 * 3 * 4 * len(PURPOSES) * 3


def test_neighbouring_steps_are_uncorrelated() -> None:
    steps = torch.stack(
        [noise(torch.arange(200), 200, step=step).normal("posterior", 50).flatten() for step in range(4)]
    )
    correlation = torch.corrcoef(steps) - torch.eye(4)
    assert correlation.abs().max() < 0.05


def test_draws_have_their_distributions() -> None:
    normal = noise(torch.arange(1000), 1000).normal("posterior", 100)
    uniform = noise(torch.arange(1000), 1000).uniform("binarise", 100)
    assert [normal.mean().item(), normal.std().item()] == pytest.approx([0, 1], abs=0.02)
    assert normal.pow(4).mean().item() == pytest.approx(3, abs=0.1)
    assert [uniform.mean().item(), uniform.var().item()] == pytest.approx([1 / 2, 1 / 12], abs=0.01)
    assert uniform.min() >= 0
    assert uniform.max() < 1


def test_padding_beyond_the_end_of_the_batch_gets_some_noise() -> None:
    drawn = noise(torch.tensor([0, 1, 2, 5]), 3).normal("posterior", 2)
    assert drawn.shape == (4, 2)
    assert torch.isfinite(drawn).all()


def test_the_noise_of_a_batch_is_keyed_by_its_positions() -> None:
    batch = digits(5)
    made = Noise.of(batch, seed=3, scope="val", step=8)
    assert (made.seed, made.scope, made.step, made.rows) == (3, "val", 8, 5)
    assert made.position is batch.position


@every_kind
def test_steps_and_building_leave_the_global_generators_alone(config: ModelConfig) -> None:
    batch = digits(6)
    with global_generators_untouched():
        model = digits_model(config, seed=5)
        step_once(model, batch, torch.optim.Adam(model.parameters()), learning_rate=1e-3)
        eval_step(model, batch, noise_of(batch))
        x, c = batch.images / 255, model.condition(batch)
        reconstruct(model, x, c, pixels="draw")
        interpolate(model, x, x.flip(0), 3, c)
        if isinstance(model, HasLikelihood):
            importance_weighted(model, x.round(), c, noise=noise_of(batch), samples=3)
        if isinstance(model, HasPrior | Categorical):
            sample(model, 6, c, seed=1, pixels="draw")


@every_kind
def test_the_global_generators_change_nothing(config: ModelConfig) -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model, batch = digits_model(config, seed=5), digits(6)
        terms = step_once(model, batch, torch.optim.Adam(model.parameters()), learning_rate=1e-3)
        results.append((terms.loss, *model.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@every_kind
def test_all_random_numbers_of_a_step_are_given_by_the_noise_before_it(config: ModelConfig) -> None:
    """So that forward and objective are pure, and a row has the same numbers in any company."""
    model, batch = digits_model(config), digits(6)
    inputs, again, other = (inputs_of(model, batch, step=step) for step in (3, 3, 4))
    alone = inputs_of(model, take(batch, torch.tensor([4])), step=3)
    assert inputs.draws.keys() == again.draws.keys() == other.draws.keys() == alone.draws.keys()
    for name, drawn in inputs.draws.items():
        assert drawn.shape[0] == 6
        assert torch.equal(drawn, again.draws[name])
        assert torch.equal(drawn[4:5], alone.draws[name])
        assert not torch.equal(drawn, other.draws[name])
    assert torch.equal(inputs.x[4:5], alone.x)
    assert (not inputs.draws) == (config.kind in ("autoencoder", "vqvae", "vqvae2"))
