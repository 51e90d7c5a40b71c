"""Finite scalar quantisation: a fixed grid, the numbers of its codes, and the gradient of its bound."""

from itertools import product

import pytest
import torch
from codebooks import random_grid
from core_models import vqvae
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_core.quantize import FiniteScalar, build_quantizer

every_level = pytest.mark.parametrize("levels", [2, 3, 4, 5, 8, 9])


def line(levels: int, low: float = -20.0, high: float = 20.0, count: int = 4001) -> torch.Tensor:
    """Encoder outputs [1, 1, 1, count] of one dimension, in rising order."""
    return torch.linspace(low, high, count).view(1, 1, 1, -1)


@pytest.mark.parametrize(("num_codes", "code_dim", "levels"), [(27, 3, 3), (1024, 5, 4), (9, 1, 9), (64, 6, 2)])
def test_levels_to_the_power_of_dimensions_are_the_codes(num_codes: int, code_dim: int, levels: int) -> None:
    made = build_quantizer(vqvae(codebook="fsq", num_codes=num_codes, code_dim=code_dim))
    assert isinstance(made, FiniteScalar)
    assert (made.levels, made.num_codes) == (levels, num_codes)


@every_level
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_numbers_and_vectors_of_codes_correspond_one_to_one(levels: int, dim: int) -> None:
    made, codes = FiniteScalar(levels=levels, code_dim=dim), torch.arange(levels**dim).view(1, 1, -1)
    vectors = made.lookup(codes)
    assert torch.equal(made.assign(vectors), codes)
    assert len(vectors[0, :, 0].T.unique(dim=0)) == levels**dim
    assert vectors.min() == -1
    assert vectors.max() == (1 if levels % 2 else 1 - 2 / levels)


def test_a_code_is_the_number_whose_digits_are_its_levels_the_first_dimension_least() -> None:
    made = FiniteScalar(levels=4, code_dim=3)
    for one, two, three in product(range(4), repeat=3):
        vector = torch.tensor([(digit - 2) / 2 for digit in (one, two, three)]).view(1, 3, 1, 1)
        assert made.assign(vector).item() == one + 4 * two + 16 * three


@every_level
def test_every_level_is_reached_in_order_and_none_beyond(levels: int) -> None:
    found = FiniteScalar(levels=levels, code_dim=1)(line(levels))
    assert found.codes.unique().tolist() == list(range(levels))
    assert (found.codes.diff() >= 0).all()


@pytest.mark.parametrize("levels", [999, 1000, 1003, 1024, 4096])
def test_with_very_many_levels_too_no_output_rounds_beyond_the_grid(levels: int) -> None:
    made = FiniteScalar(levels=levels, code_dim=2)
    z = torch.tensor([-1e9, -50.0, 0.0, 50.0, 1e9])
    codes = made.nearest(torch.stack((z, -z)).view(1, 2, 1, 5))
    assert codes.min() >= 0
    assert codes.max() < levels**2
    assert codes[0, 0, -1] == levels - 1


@pytest.mark.parametrize("levels", [3, 4, 5, 8, 9])
def test_an_output_of_0_lies_on_the_level_0(levels: int) -> None:
    found = FiniteScalar(levels=levels, code_dim=2)(torch.zeros(1, 2, 1, 1))
    assert found.vectors.abs().max() == 0
    torch.testing.assert_close(found.encoded, torch.zeros(1, 2, 1, 1), rtol=0, atol=1e-6)


def test_of_two_levels_each_takes_half_of_the_outputs() -> None:
    codes = FiniteScalar(levels=2, code_dim=1).nearest(line(2, -1.0, 1.0, count=1000))
    assert codes.sum() == 500


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(2, 9), st.integers(1, 4))
def test_a_vector_is_its_bounded_output_rounded_and_its_code_looks_it_up(seed: int, levels: int, dim: int) -> None:
    made, z = FiniteScalar(levels=levels, code_dim=dim), 2 * random_grid(3, dim, 3, seed)
    found = made(z)
    assert torch.equal(made.lookup(found.codes), found.vectors)
    assert ((found.vectors - found.encoded).abs() * made.middle <= 0.5 + 1e-5).all()
    assert found.codes.min() >= 0
    assert found.codes.max() < made.num_codes


@every_level
def test_the_gradient_is_that_of_the_bound_without_the_rounding(levels: int) -> None:
    made, z = FiniteScalar(levels=levels, code_dim=2), random_grid(3, 2, 3, seed=0).requires_grad_()
    made(z).straight_through().sum().backward()
    expected = made.reach / made.middle * (1 - torch.tanh(z.detach() + made.shift).square())
    torch.testing.assert_close(z.grad, expected)
    assert (z.grad > 0).all()
