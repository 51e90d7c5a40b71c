"""Codebooks on two and on four ranks are those of one process with the joined batches, to the bit the same on each."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import codebook_rank
import pytest
import torch
from codebook_rank import CODEBOOKS, CODES, DIM, POSITIONS, SIZES

import vae_core

TIMEOUT_S = 240
every_codebook = pytest.mark.parametrize("name", CODEBOOKS)


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of ranks that ran together, each a process of its own."""
    world, directory = request.param, tmp_path_factory.mktemp("ranks")
    program, root = Path(codebook_rank.__file__), Path(vae_core.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), str(world), str(directory)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        printed = [process.communicate(timeout=TIMEOUT_S)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0] * world, "\n".join(printed)
    return [torch.load(directory / f"rank-{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The results of this process, which has no process group."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = codebook_rank.results()
    torch.set_num_threads(threads)
    return found


@every_codebook
def test_codes_and_counts_are_those_of_the_joined_batch(
    name: str, ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for result in ranks:
        for found, expected in zip(
            result["codebooks"][name]["states"], alone["codebooks"][name]["states"], strict=True
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
def test_codes_restart_and_move_so_that_equality_says_something(name: str, alone: dict[str, Any]) -> None:
    states = alone["codebooks"][name]["states"]
    restarted = []
    for step, rows in enumerate(SIZES[1:], start=1):
        mean_count = rows * POSITIONS / CODES
        restarted.append(int((states[step]["counts"] == mean_count).sum()))
        moved = not torch.equal(states[step]["codebook"], states[step - 1]["codebook"])
        assert moved or name.startswith("loss")
    assert sum(restarted) > 0
    assert max(restarted) < CODES


def test_a_model_with_two_codebooks_trains_as_on_the_joined_batches(
    ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for result in ranks:
        torch.testing.assert_close(result["model"], alone["model"], rtol=1e-4, atol=1e-5)
        assert all(torch.equal(tensor, ranks[0]["model"][name]) for name, tensor in result["model"].items())
    assert all(alone["model"][f"quantizers.{level}.started"] for level in (0, 1))
