"""Codebooks: nearest codes, and codes that move as their equations say. In a model: test_core_vqvae."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from codebooks import follow, grid, is_row_of, quantizer, random_grid, update, vectors_of
from core_models import noise_for
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_core.quantize import Codebook

both_kinds = pytest.mark.parametrize("kind", ["ema", "loss"])


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), st.integers(2, 30), st.integers(0, 2**31))
def test_nearest_agrees_with_brute_force(rows: int, dim: int, side: int, num_codes: int, seed: int) -> None:
    codebook = torch.randn(num_codes, dim, generator=torch.Generator().manual_seed(seed + 1))
    z = random_grid(rows, dim, side, seed)
    found = quantizer(codebook).nearest(z)
    distance = (vectors_of(z).double()[:, None] - codebook.double()[None]).square().sum(-1)
    chosen = distance.gather(1, found.flatten()[:, None])[:, 0]
    assert found.shape == (rows, side, side)
    assert found.dtype == torch.int64
    torch.testing.assert_close(chosen, distance.min(1).values, rtol=1e-4, atol=1e-4)


def test_codes_are_their_own_nearest() -> None:
    codebook = torch.randn(20, 5, generator=torch.Generator().manual_seed(3))
    z = codebook.view(4, 5, 5).movedim(-1, 1)[..., None]
    found = quantizer(codebook).nearest(z)
    assert found.flatten().tolist() == list(range(20))
    assert torch.equal(quantizer(codebook).lookup(found), z)


def test_of_equally_near_codes_the_first_is_taken() -> None:
    same = quantizer(torch.tensor([[9.0, 9.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    assert same.nearest(torch.zeros(2, 2, 3, 3)).unique().tolist() == [1]
    mirrored = quantizer(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert mirrored.nearest(torch.zeros(1, 2, 1, 1)).item() == 0


def test_nearest_is_computed_in_float32_under_autocast() -> None:
    """Far from the origin the distances are small differences of large numbers."""
    made, z = quantizer(5 + torch.randn(64, 8, generator=torch.Generator().manual_seed(0))), 5 + random_grid(8, 8, 4, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made.nearest(z)
    assert torch.equal(found, made.nearest(z))


def test_lookup_puts_the_vector_of_each_code_in_its_place() -> None:
    made, codes = quantizer(num_codes=7, code_dim=3), torch.randint(7, (2, 4, 5))
    found = made.lookup(codes)
    assert found.shape == (2, 3, 4, 5)
    for place in np.ndindex(2, 4, 5):
        assert torch.equal(found[place[0], :, place[1], place[2]], made.codebook[codes[place]])


# how the codebook moves


def test_update_equals_the_equations_in_float64() -> None:
    made = quantizer(torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]]), decay=0.9, restart=0.0)
    made.counts.copy_(torch.tensor([3.0, 2.0, 5.0]))
    counts, codebook = made.counts.double().numpy(), made.codebook.double().numpy()
    sums = codebook * counts[:, None]  # N and m of appendix A.1
    generator = torch.Generator().manual_seed(2)
    for step in range(6):
        z = grid(4 * torch.rand(5, 3, 2, generator=generator))
        codes = update(made, z, step=step).flatten().numpy()
        for code in range(3):
            mine = vectors_of(z).double().numpy()[codes == code]
            counts[code] = 0.9 * counts[code] + 0.1 * len(mine)
            sums[code] = 0.9 * sums[code] + 0.1 * mine.sum(0)
        np.testing.assert_allclose(made.counts.numpy(), counts, rtol=1e-5)
        np.testing.assert_allclose(made.codebook.numpy(), sums / counts[:, None], rtol=1e-5, atol=1e-6)


def test_codes_settle_on_the_means_of_their_clusters() -> None:
    centres = torch.tensor([[-3.0, 0.0], [3.0, 1.0]])
    made = quantizer(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), decay=0.8)
    for step in range(60):
        noise = 0.1 * torch.randn(20, 2, 2, generator=torch.Generator().manual_seed(step))
        update(made, grid(centres + noise), step=step)
    torch.testing.assert_close(made.codebook, centres, rtol=0, atol=0.05)
    assert made.counts.tolist() == pytest.approx([20.0, 20.0], rel=1e-3)


def test_rows_of_weight_zero_do_not_count() -> None:
    codes = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [50.0, 50.0]])
    z = torch.cat((random_grid(5, 2, 3, seed=0), torch.full((2, 2, 3, 3), float("nan"))))
    padded, plain = quantizer(codes), quantizer(codes)
    noise = noise_for(5)
    follow(plain, plain(z[:5]), torch.ones(5), noise)
    position = torch.tensor([0, 1, 2, 3, 4, 4, 7])  # padding repeats the last place, or lies beyond it
    weight = torch.tensor([1.0, 1, 1, 1, 1, 0, 0])
    here = replace(noise, position=position)
    follow(padded, padded(z), weight, here)
    torch.testing.assert_close(padded.codebook, plain.codebook)
    torch.testing.assert_close(padded.counts, plain.counts)


def with_a_dead_code(kind: str = "ema") -> Codebook:
    """Codes 0 to 2 stand near the data; code 3 is far away and has not been used for long."""
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [1e3, 1e3]])
    made = quantizer(codes, decay=0.9, restart=0.05, kind=kind)
    made.counts.copy_(torch.tensor([9.0, 9.0, 9.0, 1e-3]))
    return made


@both_kinds
def test_a_dead_code_restarts_at_an_encoder_output_with_the_count_of_an_average_code(kind: str) -> None:
    made, z = with_a_dead_code(kind), random_grid(9, 2, 2, seed=3)
    assert 3 not in update(made, z).unique()
    assert is_row_of(made.codebook[3:], vectors_of(z)).all()
    assert made.counts[3].item() == 9 * 4 / 4
    assert not is_row_of(made.codebook[:3], vectors_of(z)).any()


@both_kinds
def test_a_restarted_code_survives_the_next_update(kind: str) -> None:
    made = with_a_dead_code(kind)
    update(made, random_grid(9, 2, 2, seed=3))
    restarted = made.codebook[3].clone()
    elsewhere = grid(torch.full((9, 4, 2), -5.0))
    assert 3 not in update(made, elsewhere, step=1).unique()
    torch.testing.assert_close(made.codebook[3], restarted)
    assert made.counts[3].item() == pytest.approx(0.9 * 9)


@both_kinds
def test_a_restarted_code_is_chosen_by_the_output_at_which_it_stands(kind: str) -> None:
    made, z = with_a_dead_code(kind), random_grid(9, 2, 2, seed=3)
    update(made, z)
    assert 3 in made.nearest(z).unique()


@pytest.mark.parametrize(("used", "restarts"), [(0.049, True), (0.051, False)])
def test_the_threshold_is_a_share_of_the_mean_use(used: float, restarts: bool) -> None:
    made = with_a_dead_code()
    made.counts[3] = used * 9 / 0.9  # after this update without use: `used` of the mean count, which is 9
    update(made, random_grid(9, 2, 2, seed=3))
    assert (made.codebook[3].abs().max() < 100) == restarts


def test_with_a_threshold_of_zero_an_unused_code_stays_where_it_is_forever() -> None:
    codes = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    made, z = quantizer(codes, decay=0.5, restart=0.0), 0.01 * random_grid(4, 2, 2, seed=0)
    for step in range(400):
        update(made, z, step=step)
    torch.testing.assert_close(made.codebook[1], codes[1], rtol=1e-4, atol=0)
    back = update(made, grid(torch.full((4, 1, 2), 4.9)), step=400)
    assert back.unique().tolist() == [1]
    torch.testing.assert_close(made.codebook[1], torch.full((2,), 4.9), rtol=1e-3, atol=0)


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.floats(0.5, 0.99), st.sampled_from([0.0, 0.05, 0.9]))
def test_codes_never_leave_the_range_of_the_data(seed: int, decay: float, restart: float) -> None:
    made = quantizer(num_codes=12, code_dim=3, decay=decay, restart=restart)
    lowest, highest = torch.full((3,), torch.inf), torch.full((3,), -torch.inf)
    for step in range(25):
        z = (1 + step % 3) * random_grid(2, 3, 2, seed + step)
        lowest, highest = torch.minimum(lowest, z.amin((0, 2, 3))), torch.maximum(highest, z.amax((0, 2, 3)))
        update(made, z, step=step)
        assert (made.codebook >= lowest - 1e-4).all()
        assert (made.codebook <= highest + 1e-4).all()
    assert torch.isfinite(made.counts).all()


@pytest.mark.parametrize("start", ["outputs", "kmeans"])
def test_after_the_first_updates_no_code_is_longer_than_the_longest_output(start: str) -> None:
    """Counts that begin at 0 are divided by next to nothing, and throw unused codes far beyond the data."""
    made, longest = quantizer(num_codes=64, code_dim=16, decay=0.99, restart=0.0, start=start), 0.0
    for step in range(4):
        z = random_grid(8, 16, 2, seed=step)
        longest = max(longest, vectors_of(z).norm(dim=1).max().item())
        update(made, z, step=step)
        assert made.codebook.norm(dim=1).max() <= longest * (1 + 1e-5)


def test_restarts_keep_a_codebook_in_use() -> None:
    """All outputs fall on one code at first; restarts spread the codes over the clusters."""
    centres = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    made = quantizer(torch.tensor([[0.0, 0.0], [99.0, 0], [99.0, 1], [99.0, 2]]), decay=0.5)
    for step in range(60):
        noise = 0.05 * torch.randn(8, 4, 2, generator=torch.Generator().manual_seed(step))
        codes = update(made, grid(centres + noise), step=step)
    assert len(codes.unique()) >= 3
