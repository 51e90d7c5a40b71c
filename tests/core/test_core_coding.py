"""Codes as bytes: what comes back is what was given, at the prior's cost, and anything else is an error."""

import copy
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vae_core import coding
from vae_core.coding import HEADER, ROWS, TOTAL, coded_bits, decode_codes, encode_codes, frequencies
from vae_core.config.priors import PixelCNNConfig
from vae_core.priors import CodePrior, build_prior, uniform_nats

TWO = ((2, 2), (4, 4))


def make(
    grids: Sequence[tuple[int, ...]], *, num_codes: int = 16, condition_dim: int = 0, scale: float = 0.3, seed: int = 1
) -> CodePrior:
    """A prior far from uniform; the larger `scale`, the surer it is."""
    prior = build_prior(PixelCNNConfig(channels=8, layers=2), grids, num_codes, condition_dim, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return prior


def drawn(prior: CodePrior, rows: int, c: Tensor | None = None) -> tuple[Tensor, ...]:
    return prior.sample(rows, c, generator=torch.Generator().manual_seed(5))


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def resealed(data: bytes) -> bytes:
    """Changed bytes with a checksum that fits them."""
    return data[:4] + struct.pack("<I", zlib.crc32(data[8:])) + data[8:]


@pytest.fixture(scope="module")
def prior() -> CodePrior:
    return make(TWO)


@pytest.fixture(scope="module")
def written(prior: CodePrior) -> tuple[tuple[Tensor, ...], bytes]:
    codes = drawn(prior, 20)
    return codes, encode_codes(prior, codes, None)


@pytest.mark.parametrize("grids", [((4, 4),), ((1, 9),), ((9,),), TWO, ((3,), (1, 5), (4, 2))])
@pytest.mark.parametrize("condition_dim", [0, 3])
def test_codes_come_back(grids: tuple[tuple[int, ...], ...], condition_dim: int) -> None:
    prior = make(grids, condition_dim=condition_dim)
    c = torch.randn(7, 3) if condition_dim else None
    codes = drawn(prior, 7, c)
    back = decode_codes(prior, encode_codes(prior, codes, c), c)
    assert same(back, codes)
    assert [one.dtype for one in back] == [torch.int64] * len(grids)


@pytest.mark.parametrize("rows", [0, 1, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS + 3])
def test_any_number_of_images_comes_back(rows: int) -> None:
    prior = make(((2, 2),), condition_dim=2)
    c = torch.randn(rows, 2)
    codes = tuple(torch.randint(16, (rows, 2, 2)) for _ in range(1))
    assert same(decode_codes(prior, encode_codes(prior, codes, c), c), codes)


@settings(max_examples=15)
@given(
    grids=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=2),
    num_codes=st.sampled_from([1, 2, 3, 100, 1000]),
    rows=st.integers(1, 5),
    scale=st.sampled_from([0.0, 1.0, 5.0]),
)
def test_improbable_codes_come_back_too(grids: list[tuple[int, int]], num_codes: int, rows: int, scale: float) -> None:
    prior = make(grids, num_codes=num_codes, scale=scale)
    generator = torch.Generator().manual_seed(rows)
    codes = tuple(torch.randint(num_codes, (rows, *grid), generator=generator) for grid in grids)
    assert same(decode_codes(prior, encode_codes(prior, codes, None), None), codes)


@pytest.mark.parametrize("scale", [0.1, 0.3, 0.6])
def test_the_size_is_the_cost_within_a_hundredth(scale: float) -> None:
    prior = make(((4, 4), (8, 8)), num_codes=64, scale=scale)
    codes = drawn(prior, 300)
    with torch.no_grad():
        cost = prior.nll(codes, None).double().sum().item() / math.log(2)
    bits = 8 * len(encode_codes(prior, codes, None))
    assert 0.8 * cost < cost / 1.01 < bits < 1.01 * cost
    assert cost < 0.99 * 300 * uniform_nats(prior) / math.log(2)


def test_the_overhead_is_the_same_for_any_number_of_images() -> None:
    prior = make(TWO)
    for rows in (1, 10, 200):
        codes = drawn(prior, rows)
        overhead = len(encode_codes(prior, codes, None)) - coded_bits(prior, codes, None).sum().item() / 8
        assert 0 <= overhead < HEADER.size + 8.01


def test_bits_of_an_image_are_its_cost(prior: CodePrior) -> None:
    codes = drawn(prior, ROWS + 5)
    bits = coded_bits(prior, codes, None)
    with torch.no_grad():
        cost = prior.nll(codes, None).double() / math.log(2)
    assert bits.shape == (ROWS + 5,)
    assert bits.dtype == torch.float64
    torch.testing.assert_close(bits, cost, rtol=1e-3, atol=0.05)


def test_a_uniform_prior_takes_the_uniform_cost(prior: CodePrior) -> None:
    uniform = copy.deepcopy(prior)
    for level in uniform.levels:
        for parameter in level.head.parameters():
            torch.nn.init.zeros_(parameter)
    bits = coded_bits(uniform, drawn(prior, 3), None)
    torch.testing.assert_close(bits, torch.full((3,), uniform_nats(prior) / math.log(2), dtype=torch.float64))


def test_what_is_certain_costs_next_to_nothing(prior: CodePrior) -> None:
    sure = copy.deepcopy(prior)
    with torch.no_grad():
        for level in sure.levels:
            level.head[-1].bias[3] += 1e4
    codes = tuple(torch.full((100, *grid), 3) for grid in sure.grids)
    data = encode_codes(sure, codes, None)
    assert len(data) <= HEADER.size + 12
    assert same(decode_codes(sure, data, None), codes)


def test_the_same_codes_give_the_same_bytes(prior: CodePrior, written: tuple[tuple[Tensor, ...], bytes]) -> None:
    codes, data = written
    assert encode_codes(copy.deepcopy(prior).train(), codes, None) == data
    assert encode_codes(prior, [one.clone() for one in codes], None) == data
    assert prior.levels[0].context.position.dtype == torch.float32  # the caller's prior stays as it was


def test_coding_draws_nothing(prior: CodePrior, written: tuple[tuple[Tensor, ...], bytes]) -> None:
    before = torch.get_rng_state()
    codes, data = written
    encode_codes(prior, codes, None)
    decode_codes(prior, data, None)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_number_of_threads_decodes_the_same(
    prior: CodePrior, written: tuple[tuple[Tensor, ...], bytes]
) -> None:
    codes, data = written
    torch.set_num_threads(2)
    try:
        assert same(decode_codes(prior, data, None), codes)
    finally:
        torch.set_num_threads(1)


def test_sums_in_another_order_decode_the_same(
    prior: CodePrior, written: tuple[tuple[Tensor, ...], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, data = written
    generator = torch.Generator().manual_seed(0)

    def shaken(logits: Tensor) -> Any:
        return frequencies(logits + 1e-13 * torch.randn(logits.shape, generator=generator, dtype=torch.float64))

    monkeypatch.setattr(coding, "frequencies", shaken)
    assert same(decode_codes(prior, data, None), codes)


def test_other_arithmetic_is_an_error_and_no_other_codes(
    prior: CodePrior, written: tuple[tuple[Tensor, ...], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def coarse(logits: Tensor) -> Any:
        nonlocal calls
        calls += 1
        return frequencies(logits if calls < 20 else logits + torch.arange(16) / 256)

    monkeypatch.setattr(coding, "frequencies", coarse)
    with pytest.raises(ValueError, match="computes other probabilities"):
        decode_codes(prior, written[1], None)


def test_every_damaged_byte_is_an_error(prior: CodePrior, written: tuple[tuple[Tensor, ...], bytes]) -> None:
    data = written[1]
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(ValueError, match=r"codes: (expected bytes|these \d+ bytes are damaged)"):
            decode_codes(prior, bytes(damaged), None)
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"codes: (expected bytes|these \d+ bytes are damaged)"):
            decode_codes(prior, data[:length], None)


@settings(max_examples=50)
@given(data=st.binary(max_size=64))
def test_foreign_bytes_are_an_error(prior: CodePrior, data: bytes) -> None:
    for found in (data, b"VQP1" + data):
        with pytest.raises(ValueError, match="codes: "):
            decode_codes(prior, found, None)


def test_added_bytes_and_wrong_counts_are_errors(prior: CodePrior, written: tuple[tuple[Tensor, ...], bytes]) -> None:
    data = written[1]
    with pytest.raises(ValueError, match="damaged"):
        decode_codes(prior, data + b"\0\0\0\0", None)
    with pytest.raises(ValueError, match="computes other probabilities"):
        decode_codes(prior, resealed(data[:16] + b"\1\2\3\4" + data[20:]), None)  # the checksum of the codes
    for count in (0, 19, 21, 2**32 - 1):
        lying = data[:8] + struct.pack("<I", count) + data[12:]
        with pytest.raises(ValueError, match="computes other probabilities"):
            decode_codes(prior, resealed(lying), None)
    with pytest.raises(ValueError, match="computes other probabilities"):
        decode_codes(prior, resealed(data + b"\0\0\0\0"), None)


def test_another_prior_or_condition_is_an_error() -> None:
    prior, c = make(TWO, condition_dim=3), torch.randn(4, 3)
    data = encode_codes(prior, drawn(prior, 4, c), c)
    others = [make(TWO, condition_dim=3, seed=2), make(TWO, num_codes=17, condition_dim=3), make(TWO), make(((4, 4),))]
    for other in others:
        with pytest.raises(ValueError, match="another prior or condition"):
            decode_codes(other, data, c if other.condition_dim else None)
    for wrong in (c + 1, c[:3], c.flip(0), None):
        with pytest.raises(ValueError, match="another prior or condition"):
            decode_codes(prior, data, wrong)


def test_codes_that_do_not_fit_are_refused(prior: CodePrior) -> None:
    codes = drawn(prior, 2)
    for value in (-1, 16):
        wrong = [one.clone() for one in codes]
        wrong[1][1, 0, 0] = value
        with pytest.raises(ValueError, match="codes: expected whole numbers from 0 to 15"):
            encode_codes(prior, wrong, None)
    with pytest.raises(ValueError, match=r"codes: expected \[B, \*grid\]"):
        encode_codes(prior, codes[:1], None)
    with pytest.raises(ValueError, match="condition: expected None"):
        encode_codes(prior, codes, torch.zeros(2, 3))


def test_a_prior_that_is_not_finite_is_refused(prior: CodePrior) -> None:
    broken = copy.deepcopy(prior)
    with torch.no_grad():
        broken.levels[1].embedding.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        encode_codes(broken, drawn(prior, 2), None)


@settings(max_examples=60)
@given(codes=st.integers(1, 300), scale=st.sampled_from([0.0, 0.1, 3.0, 100.0, 1e6]), seed=st.integers(0, 1000))
def test_frequencies_are_whole_positive_and_near_the_probabilities(codes: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(4, codes, generator=generator, dtype=torch.float64)
    found = frequencies(logits)
    assert found.dtype == np.int64
    assert found.min() >= 1
    assert (found.sum(1) == TOTAL).all()
    probabilities = logits.softmax(-1)
    divergence = (probabilities * (probabilities.log() - torch.from_numpy(found / TOTAL).log())).nan_to_num().sum(1)
    assert -1e-9 < divergence.max().item() < 1e-4


def test_frequencies_forgive_the_last_digits_of_logits() -> None:
    logits = 4 * torch.randn(300, 128, dtype=torch.float64)
    shaken = logits * (1 + 1e-14 * torch.randn(300, 128, dtype=torch.float64)) + 1e-13
    assert (frequencies(logits) == frequencies(shaken)).all()


def test_exponentials_are_exact() -> None:
    table = coding._exponentials()
    expected = 2.0**38 * np.exp(-np.arange(len(table)) / 64)
    assert np.abs(table - expected).max() < 1.01
    assert table[-1] == 0 < table[-2]
    assert (np.diff(table) < 0).all() or table[-3] == table[-2]


def test_too_many_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 65536 codes, got 65537"):
        frequencies(torch.zeros(1, 65537, dtype=torch.float64))
    assert frequencies(torch.zeros(1, 65536, dtype=torch.float64)).min() == TOTAL // 65536
