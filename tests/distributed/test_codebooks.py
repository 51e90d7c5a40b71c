"""Codebooks on two and on four ranks are those of one process with the joined batches, to the bit the same on each."""

from typing import Any

import codebook_work
import pytest
import torch
from codebook_work import CODEBOOKS, CODES, DIM, POSITIONS, SIZES
from ranks import alone, together

every_codebook = pytest.mark.parametrize("name", CODEBOOKS)


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(codebook_work.__name__, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def by_itself(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return alone(codebook_work.__name__, tmp_path_factory.mktemp("alone"))


@every_codebook
def test_codes_and_counts_are_those_of_the_joined_batch(
    name: str, ranks: list[dict[str, Any]], by_itself: dict[str, Any]
) -> None:
    for result in ranks:
        for found, expected in zip(
            result["codebooks"][name]["states"], by_itself["codebooks"][name]["states"], strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@every_codebook
def test_codes_and_counts_are_the_same_bits_on_every_rank(name: str, ranks: list[dict[str, Any]]) -> None:
    first, *others = [result["codebooks"][name]["states"] for result in ranks]
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert torch.equal(one["codebook"], two["codebook"])
            assert torch.equal(one["counts"], two["counts"])


@every_codebook
def test_collectives_have_one_size_whatever_the_rows_of_a_rank(name: str, ranks: list[dict[str, Any]]) -> None:
    """So that no rank waits for another, even where it holds padding alone."""
    sums = 1 if name.startswith("loss") else 1 + DIM
    start = [CODES * DIM] + [CODES * (1 + DIM)] * (10 if "kmeans" in name else 0)
    for result in ranks:
        assert result["codebooks"][name]["collectives"] == [start] + [[CODES * (sums + DIM)]] * (len(SIZES) - 1)


@every_codebook
def test_codes_restart_and_move_so_that_equality_says_something(name: str, by_itself: dict[str, Any]) -> None:
    states = by_itself["codebooks"][name]["states"]
    restarted = []
    for step, rows in enumerate(SIZES[1:], start=1):
        mean_count = rows * POSITIONS / CODES
        restarted.append(int((states[step]["counts"] == mean_count).sum()))
        moved = not torch.equal(states[step]["codebook"], states[step - 1]["codebook"])
        assert moved or name.startswith("loss")
    assert sum(restarted) > 0
    assert max(restarted) < CODES


def test_a_model_with_two_codebooks_trains_as_on_the_joined_batches(
    ranks: list[dict[str, Any]], by_itself: dict[str, Any]
) -> None:
    for result in ranks:
        torch.testing.assert_close(result["model"], by_itself["model"], rtol=1e-4, atol=1e-5)
        assert all(torch.equal(tensor, ranks[0]["model"][name]) for name, tensor in result["model"].items())
    assert all(by_itself["model"][f"quantizers.{level}.started"] for level in (0, 1))
