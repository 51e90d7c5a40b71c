"""Two ranks compute what one process computes on the joined batch, also where the batch does not divide evenly."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gloo_rank
import pytest
import torch
from gloo_rank import FAMILIES, SIZES
from torch import Tensor

import vae_core
from vae_core.config import VQVAEConfig
from vae_core.noise import Noise
from vae_core.quantize import VectorQuantizer

WORLD, TIMEOUT_S = 2, 120
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of two ranks that ran together, each a process of its own."""
    directory = tmp_path_factory.mktemp("ranks")
    program, root = Path(gloo_rank.__file__), Path(vae_core.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONWARNINGS": "error"}
    started = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), str(WORLD), str(directory)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0] * WORLD, "\n".join(outputs)
    return [torch.load(directory / f"rank-{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The results of this process, which has no process group."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = gloo_rank.results()
    torch.set_num_threads(threads)
    return found


def test_the_batches_are_uneven() -> None:
    assert any(rows % WORLD for rows in SIZES)
    assert min(SIZES) < WORLD


@every_family
def test_one_step_on_two_ranks_is_the_step_on_the_joined_batch(
    family: str, ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for result in ranks:
        for name, tensor in alone["one_step"][family].items():
            torch.testing.assert_close(result["one_step"][family][name], tensor, rtol=1e-6, atol=1e-6)


@every_family
def test_several_steps_on_two_ranks_are_those_on_the_joined_batches(
    family: str, ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for result in ranks:
        for name, tensor in alone["several_steps"][family].items():
            torch.testing.assert_close(result["several_steps"][family][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", ["one_step", "several_steps"])
@every_family
def test_parameters_codebook_and_counts_are_the_same_bits_on_both_ranks(
    family: str, steps: str, ranks: list[dict[str, Any]]
) -> None:
    first, second = (result[steps][family] for result in ranks)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    if isinstance(FAMILIES[family], VQVAEConfig):
        assert {"quantizer.codebook", "quantizer.counts", "quantizer.started"} <= first.keys()
        assert first["quantizer.started"]


def test_steps_move_every_parameter_so_that_equality_says_something(alone: dict[str, Any]) -> None:
    for family in FAMILIES:
        one, several = alone["one_step"][family], alone["several_steps"][family]
        assert [name for name in one if torch.equal(one[name], several[name])] in ([], ["quantizer.started"])


def test_codes_restart_while_both_ranks_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the equality above holds for restarts too."""
    restarted, update = [], VectorQuantizer.update

    def counting(self: VectorQuantizer, z: Tensor, codes: Tensor, weight: Tensor, noise: Noise) -> None:
        update(self, z, codes, weight, noise)
        restarted.append(int((self.counts == weight.sum() * codes[0].numel() / self.num_codes).sum()))

    monkeypatch.setattr(VectorQuantizer, "update", counting)
    gloo_rank.several_steps(FAMILIES["vqvae"])
    assert restarted[0] == 8
    assert 0 < sum(restarted[1:]) < 8 * len(restarted[1:])


@every_family
def test_a_gradient_that_is_not_finite_on_one_rank_stops_every_rank_unchanged(
    family: str, ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    for result in (*ranks, alone):
        assert result["fault"][family] == {"raised": True, "unchanged": True}


@pytest.mark.parametrize("figures", ["means", "usage", "resumed"])
def test_figures_of_two_ranks_are_those_of_one(
    figures: str, ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    expected = alone["metrics"][figures]
    assert expected
    for result in ranks:
        assert result["metrics"][figures] == pytest.approx(expected, rel=1e-6)


def test_means_taken_up_again_are_those_of_all_rows(alone: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    rows = [gloo_rank.global_batch(step, rows).images.double().flatten(1).mean(1) for step, rows in enumerate(SIZES)]
    for result in (alone, *ranks):
        assert result["metrics"]["resumed"]["x"] == pytest.approx(torch.cat(rows).mean().item(), rel=1e-12)


def test_active_units_of_two_ranks_are_those_of_one(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for result in ranks:
        assert result["metrics"]["active_units"] == alone["metrics"]["active_units"] == 2
        torch.testing.assert_close(result["metrics"]["variances"], alone["metrics"]["variances"], rtol=1e-5, atol=1e-9)


def test_a_sum_over_ranks_is_in_place_and_reaches_both(ranks: list[dict[str, Any]]) -> None:
    assert [result["collectives"]["sum"] for result in ranks] == [[3.0, 6.0]] * WORLD
    assert all(result["collectives"]["in_place"] for result in ranks)


def test_every_rank_gets_the_value_of_rank_zero(ranks: list[dict[str, Any]]) -> None:
    assert [result["collectives"]["from_rank_zero"] for result in ranks] == [[0, 17, 2**40]] * WORLD


def test_ranks_know_their_place_and_wrap_their_models(ranks: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(ranks):
        found = result["collectives"]
        assert (found["rank"], found["world"]) == (rank, WORLD)
        assert (found["wrapped"], found["broadcasts_buffers"]) == ("DistributedDataParallel", False)


def test_outside_a_group_collectives_do_nothing(alone: dict[str, Any]) -> None:
    assert alone["collectives"] == {
        "rank": 0,
        "world": 1,
        "sum": [1.0, 2.0],
        "in_place": True,
        "from_rank_zero": [0, 17, 2**40],
        "wrapped": "Linear",
        "broadcasts_buffers": None,
    }
