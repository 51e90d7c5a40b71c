"""What sets the kinds of codebook apart: who moves it, and which distance it goes by."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from codebooks import grid, quantizer, random_grid, update, vectors_of
from core_models import noise_for, vqvae
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vae_core.quantize import Codebook, EMACodebook, FiniteScalar, LossCodebook, build_quantizer
from vae_core.quantize.statistics import sums_by_code

every_kind = pytest.mark.parametrize("kind", ["ema", "loss", "fsq"])
both_distances = pytest.mark.parametrize("distance", ["euclidean", "cosine"])


@pytest.mark.parametrize(("kind", "expected"), [("ema", EMACodebook), ("loss", LossCodebook), ("fsq", FiniteScalar)])
def test_the_configuration_names_the_quantizer(kind: str, expected: type) -> None:
    assert type(build_quantizer(vqvae(codebook=kind, num_codes=27))) is expected


@every_kind
@both_distances
def test_the_decoder_sees_the_codes_to_the_bit_and_the_encoder_its_gradient_unchanged(kind: str, distance: str) -> None:
    made, z = build_quantizer(vqvae(codebook=kind, num_codes=27, distance=distance)), random_grid(4, 3, 2, seed=0)
    found = made(z.requires_grad_())
    found.encoded.retain_grad()
    seen, wanted = found.straight_through(), random_grid(4, 3, 2, seed=1)
    (seen * wanted).sum().backward()
    assert torch.equal(seen, made.lookup(found.codes))
    assert torch.equal(found.encoded.grad, wanted)
    assert all(parameter.grad is None for parameter in made.parameters())


@every_kind
@both_distances
def test_quantisation_is_float32_under_autocast(kind: str, distance: str) -> None:
    made = build_quantizer(vqvae(codebook=kind, num_codes=729, distance=distance))
    z = 3 * random_grid(8, 3, 4, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, half = made(z), made(z.bfloat16())
    assert torch.equal(found.codes, made.nearest(z))
    assert torch.equal(half.codes, made.nearest(z.bfloat16().float()))
    for one in (found, half):
        assert one.encoded.dtype == one.vectors.dtype == torch.float32


@every_kind
@both_distances
def test_codes_are_the_nearest_of_their_own_vectors(kind: str, distance: str) -> None:
    made, codes = build_quantizer(vqvae(codebook=kind, num_codes=64, distance=distance)), torch.arange(64).view(4, 4, 4)
    assert torch.equal(made.assign(made.lookup(codes)), codes)


@every_kind
@both_distances
def test_a_path_of_codes_begins_and_ends_at_its_ends_and_stays_near_the_line(kind: str, distance: str) -> None:
    made = build_quantizer(vqvae(codebook=kind, num_codes=125, distance=distance))
    start, end = torch.randint(125, (3, 4, 4)), torch.randint(125, (3, 4, 4))
    assert torch.equal(made.between(start, end, 0.0), start)
    assert torch.equal(made.between(start, end, 1.0), end)
    line = torch.lerp(made.lookup(start), made.lookup(end), 0.5)
    distances = (vectors_of(line)[:, None] - made.lookup(torch.arange(125).view(1, 5, 25)).flatten(2)[0].T).norm(dim=-1)
    chosen = distances.gather(1, made.between(start, end, 0.5).view(-1, 1))[:, 0]
    torch.testing.assert_close(chosen, distances.min(1).values)


@every_kind
@both_distances
def test_quantisers_compile_without_a_graph_break(kind: str, distance: str) -> None:
    made, z = build_quantizer(vqvae(codebook=kind, num_codes=27, distance=distance)), random_grid(4, 3, 2, seed=0)
    compiled = torch.compile(lambda z: made(z).straight_through(), fullgraph=True, backend="eager")
    assert torch.equal(compiled(z), made(z).straight_through())


# the codebook of the loss


def test_a_codebook_of_the_loss_is_a_parameter_that_its_distances_move() -> None:
    made, z = quantizer(torch.randn(4, 2), kind="loss"), random_grid(4, 2, 2, seed=0)
    assert [name for name, _ in made.named_parameters()] == ["codebook"]
    found = made(z)
    (found.vectors - found.encoded).square().sum().backward()
    for code in range(4):
        mine = vectors_of(z)[found.codes.flatten() == code]
        torch.testing.assert_close(made.codebook.grad[code], 2 * (made.codebook[code] - mine).sum(0).detach())


def test_updates_of_a_codebook_of_the_loss_only_count_and_restart() -> None:
    made, z = quantizer(torch.randn(4, 2), kind="loss", restart=0.0, decay=0.9), random_grid(4, 2, 2, seed=0)
    before = made.codebook.detach().clone()
    codes = update(made, z)
    assert torch.equal(made.codebook, before)
    torch.testing.assert_close(made.counts, 0.9 + 0.1 * codes.flatten().bincount(minlength=4).float())


# cosine distance


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.sampled_from(["ema", "loss"]))
def test_cosine_takes_the_code_of_the_nearest_direction(seed: int, kind: str) -> None:
    codes = torch.randn(12, 4, generator=torch.Generator().manual_seed(seed))
    made, z = quantizer(codes, kind=kind, distance="cosine"), random_grid(3, 4, 2, seed + 1)
    similarity = F.cosine_similarity(vectors_of(z)[:, None].double(), codes[None].double(), dim=-1)
    found = made(z)
    chosen = similarity.gather(1, found.codes.flatten()[:, None])[:, 0]
    torch.testing.assert_close(chosen, similarity.max(1).values, rtol=0, atol=1e-5)
    assert torch.equal(made(7 * z).codes, found.codes)
    for vectors in (found.encoded, found.vectors, made.lookup(found.codes)):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3, 2, 2))


def test_codes_of_cosine_follow_the_mean_direction() -> None:
    made = quantizer(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), distance="cosine", decay=0.5, restart=0.0)
    made.counts.copy_(torch.tensor([2.0, 4.0]))
    outputs = torch.tensor([[[10.0, 1.0]], [[0.1, 0.02]], [[-1.0, 3.0]]])
    update(made, grid(outputs))
    directions = F.normalize(outputs[:, 0], dim=1)
    sums = torch.stack(
        (
            0.5 * torch.tensor([2.0, 0.0]) + 0.5 * directions[:2].sum(0),
            0.5 * torch.tensor([0.0, 4.0]) + 0.5 * directions[2],
        )
    )
    torch.testing.assert_close(made.vectors(), F.normalize(sums, dim=1))


def test_cosine_of_an_output_of_length_zero_has_a_finite_gradient() -> None:
    made, z = quantizer(torch.randn(4, 3), distance="cosine"), torch.zeros(1, 3, 2, 2, requires_grad=True)
    made(z).straight_through().sum().backward()
    assert torch.isfinite(z.grad).all()
    assert z.grad.abs().max() <= 1e5


# sums


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(1, 9), st.integers(2, 12), st.integers(0, 2**31))
def test_sums_by_code_are_those_of_a_loop(rows: int, width: int, num_codes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(num_codes, (rows,), generator=generator)
    values = torch.randn(rows, width, generator=generator)
    expected = torch.stack([values[codes == code].double().sum(0) for code in range(num_codes)])
    torch.testing.assert_close(sums_by_code(codes, values, num_codes), expected.float(), rtol=1e-5, atol=1e-5)


def test_sums_by_code_are_the_same_bits_on_any_number_of_threads() -> None:
    codes, values = torch.randint(50, (20_000,)), torch.randn(20_000, 9)
    found = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        found.append(sums_by_code(codes, values, 50))
    torch.set_num_threads(1)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


def test_a_fixed_grid_has_nothing_to_save_and_nothing_to_update() -> None:
    made, z = build_quantizer(vqvae(codebook="fsq", num_codes=27)), random_grid(4, 3, 2, seed=0)
    assert isinstance(made, nn.Module)
    assert not isinstance(made, Codebook)
    assert not made.state_dict()
    before = made(z)
    noise = replace(noise_for(4), step=3)
    made.update(before.encoded, before.codes, torch.ones(4), noise, torch.tensor(True))
    assert torch.equal(made(z).vectors, before.vectors)
