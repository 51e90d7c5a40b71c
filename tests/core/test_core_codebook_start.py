"""Where codes begin: at encoder outputs of the first batch, or at the means of their clusters."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from codebooks import follow, grid, is_row_of, quantizer, random_grid, update, vectors_of
from core_models import noise_for
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vae_core.quantize.statistics import kmeans, unit

both_kinds = pytest.mark.parametrize("kind", ["ema", "loss"])
both_starts = pytest.mark.parametrize("start", ["outputs", "kmeans"])


@both_kinds
@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(2, 40), st.integers(0, 2**31))
def test_the_first_update_starts_every_code_at_an_encoder_output(
    kind: str, rows: int, side: int, num_codes: int, seed: int
) -> None:
    made, z = quantizer(num_codes=num_codes, code_dim=3, restart=0.0, kind=kind), random_grid(rows, 3, side, seed)
    assert not made.started
    update(made, z)
    assert made.started
    assert is_row_of(made.codebook, vectors_of(z)).all()
    assert made.counts.tolist() == pytest.approx([rows * side * side / num_codes] * num_codes)


def test_codes_start_at_different_encoder_outputs() -> None:
    made, z = quantizer(num_codes=32, code_dim=3), random_grid(64, 3, 4, seed=0)
    update(made, z)
    assert len(made.codebook.unique(dim=0)) == 32
    rows = [int((vectors_of(z) == code).all(1).nonzero()[0]) // 16 for code in made.codebook]
    assert min(rows) < 16
    assert max(rows) >= 48


@both_kinds
@both_starts
@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_codes_never_start_at_padding(kind: str, start: str, seed: int) -> None:
    made = quantizer(num_codes=16, kind=kind, start=start)
    z = random_grid(6, 2, 2, seed)
    z[[0, 2, 5]] = float("nan")
    noise = replace(noise_for(3, seed=seed), position=torch.tensor([2, 0, 1, 1, 2, 5]))
    follow(made, made(z), torch.tensor([0.0, 1, 0, 1, 1, 0]), noise)
    assert is_row_of(made.codebook, vectors_of(z[[1, 3, 4]])).all()


def blobs(centres: Tensor, rows: int, seed: int) -> Tensor:
    """[rows, P, D] close to the P centres."""
    return centres + 0.1 * torch.randn(rows, *centres.shape, generator=torch.Generator().manual_seed(seed))


def lloyd(centres: np.ndarray, points: np.ndarray, iterations: int) -> np.ndarray:
    for _ in range(iterations):
        nearest = ((points[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
        means = [points[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(len(centres))]
        centres = np.stack(means)
    return centres


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_kmeans_takes_lloyds_iterations(seed: int) -> None:
    points = vectors_of(random_grid(30, 3, 2, seed))
    found = kmeans(points[:7], points, torch.ones(len(points)), cosine=False)
    expected = lloyd(points[:7].double().numpy(), points.double().numpy(), iterations=10)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_kmeans_of_directions_ignores_lengths() -> None:
    points = unit(vectors_of(random_grid(30, 3, 2, seed=4)), 1)
    found = kmeans(points[:5], points, torch.ones(len(points)), cosine=True)
    scaled = kmeans(10 * points[:5], points, torch.ones(len(points)), cosine=True)
    torch.testing.assert_close(found, scaled)
    nearest = (points @ unit(found, 1).T).argmax(1)
    means = torch.stack([points[nearest == k].mean(0) for k in range(5)])
    torch.testing.assert_close(unit(found, 1), unit(means, 1), rtol=0, atol=0.05)


@both_kinds
def test_kmeans_starts_codes_at_the_means_of_clusters_and_not_at_single_outputs(kind: str) -> None:
    centres = torch.tensor([[-3.0, 0.0], [3.0, 1.0], [0.0, 5.0], [1.0, -4.0]])
    points = blobs(centres, 40, seed=0)
    errors = {}
    for start in ("outputs", "kmeans"):
        made = quantizer(num_codes=4, kind=kind, start=start)
        update(made, grid(points), step=1)
        errors[start] = (grid(points) - made.lookup(made.nearest(grid(points)))).square().sum(1).mean().item()
        assert is_row_of(made.codebook, points.flatten(0, 1)).all() == (start == "outputs")
        assert made.counts.tolist() == [40.0] * 4
    assert errors["kmeans"] < errors["outputs"]


def test_a_cluster_that_no_output_chooses_keeps_its_start() -> None:
    """As many equal outputs as codes: all choose the first code."""
    made = quantizer(num_codes=3, start="kmeans")
    update(made, grid(torch.full((3, 1, 2), 2.0)))
    assert made.codebook.tolist() == [[2.0, 2.0]] * 3


@both_starts
def test_a_codebook_starts_once(start: str) -> None:
    made = quantizer(num_codes=4, restart=0.0, decay=0.999, start=start)
    update(made, random_grid(8, 2, 2, seed=0))
    before = made.codebook.clone()
    update(made, 100 + random_grid(8, 2, 2, seed=1), step=1)
    assert (made.codebook - before).abs().max() < 10


def test_a_codebook_that_is_given_the_state_of_a_new_one_starts_again() -> None:
    made = quantizer(num_codes=4)
    fresh = deepcopy(made.state_dict())
    for step in range(2):
        update(made, random_grid(8, 2, 2, seed=0), step=step)
    made.load_state_dict(fresh)
    z = random_grid(8, 2, 2, seed=1)
    update(made, z)
    assert is_row_of(made.codebook, vectors_of(z)).all()


def test_a_codebook_goes_on_from_a_saved_state() -> None:
    first, second = quantizer(num_codes=4, start="kmeans"), quantizer(num_codes=4, start="kmeans")
    update(first, random_grid(8, 2, 2, seed=0))
    second.load_state_dict(first.state_dict())
    for made in (first, second):
        update(made, random_grid(8, 2, 2, seed=1), step=1)
    assert torch.equal(first.codebook, second.codebook)
    assert torch.equal(first.counts, second.counts)


def test_two_codebooks_of_a_model_start_at_different_places() -> None:
    one, two = quantizer(num_codes=8), quantizer(num_codes=8)
    z = random_grid(8, 2, 4, seed=0)
    for level, made in enumerate((one, two)):
        follow(made, made(z), torch.ones(8), noise_for(8), purpose=f"codes of level {level}")
    assert not torch.equal(one.codebook, two.codebook)
