"""Two ranks compute what one process computes on the joined batch, also where the batch does not divide evenly."""

from typing import Any

import pytest
import step_work
import torch
from ranks import alone, together
from step_work import COMPILED, FAMILIES, FAULTS, IN_PARTS, SIZES
from torch import Tensor

from vae_core.models import build_model
from vae_core.models.vae import VAE
from vae_core.normal import kl_each
from vae_core.quantize import Codebook
from vae_core.training import prepare

WORLD = 2
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(step_work.__name__, WORLD, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def by_itself(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return alone(step_work.__name__, tmp_path_factory.mktemp("alone"))


def test_the_batches_are_uneven() -> None:
    assert any(rows % WORLD for rows in SIZES)
    assert min(SIZES) < WORLD


@every_family
def test_one_step_on_two_ranks_is_the_step_on_the_joined_batch(
    family: str, ranks: list[dict[str, Any]], by_itself: dict[str, Any]
) -> None:
    for result in ranks:
        for name, tensor in by_itself["one_step"][family]["state"].items():
            torch.testing.assert_close(result["one_step"][family]["state"][name], tensor, rtol=1e-5, atol=1e-6)


@every_family
def test_several_steps_on_two_ranks_are_those_on_the_joined_batches(
    family: str, ranks: list[dict[str, Any]], by_itself: dict[str, Any]
) -> None:
    for result in ranks:
        for name, tensor in by_itself["several_steps"][family]["state"].items():
            torch.testing.assert_close(result["several_steps"][family]["state"][name], tensor, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", IN_PARTS)
def test_ranks_whose_rows_pass_in_parts_take_the_steps_of_the_joined_batches(
    family: str, ranks: list[dict[str, Any]], by_itself: dict[str, Any]
) -> None:
    """And communicate once a step, whatever the number of parts."""
    for result in (*ranks, by_itself):
        for name, tensor in by_itself["several_steps"][family]["state"].items():
            torch.testing.assert_close(result["parts"][family]["state"][name], tensor, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", COMPILED)
def test_ranks_that_compile_take_the_steps_of_the_joined_batches(
    family: str, ranks: list[dict[str, Any]], by_itself: dict[str, Any]
) -> None:
    for result in (*ranks, by_itself):
        for name, tensor in by_itself["several_steps"][family]["state"].items():
            torch.testing.assert_close(result["compiled"][family]["state"][name], tensor, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("steps", ["one_step", "several_steps"])
@every_family
def test_terms_of_the_rows_of_a_rank_are_those_of_the_joined_batch(
    family: str, steps: str, ranks: list[dict[str, Any]], by_itself: dict[str, Any]
) -> None:
    expected = by_itself[steps][family]["terms"]
    places = torch.cat([result[steps][family]["places"] for result in ranks])
    assert sorted(places.tolist()) == by_itself[steps][family]["places"].tolist()
    for name in expected:
        found = torch.cat([result[steps][family]["terms"][name] for result in ranks])
        torch.testing.assert_close(found, expected[name][places], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("steps", ["one_step", "several_steps"])
@every_family
def test_parameters_and_buffers_are_the_same_bits_on_both_ranks(
    family: str, steps: str, ranks: list[dict[str, Any]]
) -> None:
    first, second = (result[steps][family]["state"] for result in ranks)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    for quantizer in {"vqvae": ["quantizer"], "vqvae2": ["quantizers.0", "quantizers.1"]}.get(family, []):
        assert {f"{quantizer}.{name}" for name in ("codebook", "counts", "started")} <= first.keys()
        assert first[f"{quantizer}.started"]
    if family == "reinforce":
        assert first["baseline.started"]


def test_steps_move_every_parameter_so_that_equality_says_something(by_itself: dict[str, Any]) -> None:
    for family in FAMILIES:
        one, several = by_itself["one_step"][family]["state"], by_itself["several_steps"][family]["state"]
        still = [name for name in one if torch.equal(one[name], several[name])]
        assert [name for name in still if not name.endswith("started")] == []


def test_free_bits_are_decided_by_rows_of_both_ranks_so_that_equality_says_something() -> None:
    """With its own rows alone, a rank would charge for other dimensions."""
    config = FAMILIES["vae-free-bits"]
    model = build_model(config, step_work.DATA)
    assert isinstance(model, VAE)
    batch, noise = step_work.own_batch(0, SIZES[0])
    with torch.no_grad():
        each = kl_each(model.encode(prepare(model, batch, noise, 0.0).x, None))
    charged = {
        tuple((rows.mean(0) > step_work.FREE_BITS).tolist()) for rows in (each, *(each[r::WORLD] for r in range(WORLD)))
    }
    assert len(charged) > 1


def test_codes_restart_while_both_ranks_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the equality above holds for restarts too."""
    restarted, move = [], Codebook._move

    def counting(self: Codebook, vectors: Tensor, codes: Tensor, weight: Tensor, *rest: Any) -> None:
        move(self, vectors, codes, weight, *rest)
        mean_count = weight.sum() * vectors.shape[1] / self.num_codes
        restarted.append(int((self.counts == mean_count).sum()))

    monkeypatch.setattr(Codebook, "_move", counting)
    step_work.several_steps(FAMILIES["vqvae"])
    assert len(restarted) == len(SIZES) - 1
    assert 0 < sum(restarted) < 8 * len(restarted)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_every_rank(
    fault: str, ranks: list[dict[str, Any]], by_itself: dict[str, Any]
) -> None:
    """And the next one is taken by all."""
    for result in (*ranks, by_itself):
        for family in result["fault"].values():
            assert family[fault] == {"skipped": True, "unchanged": True, "skipped_again": False}


@pytest.mark.parametrize("figures", ["means", "usage", "resumed"])
def test_figures_of_two_ranks_are_those_of_one(
    figures: str, ranks: list[dict[str, Any]], by_itself: dict[str, Any]
) -> None:
    expected = by_itself["metrics"][figures]
    assert expected
    for result in ranks:
        assert result["metrics"][figures] == pytest.approx(expected, rel=1e-6)


def test_means_taken_up_again_are_those_of_all_rows(by_itself: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    rows = [step_work.global_batch(step, rows).images.double().flatten(1).mean(1) for step, rows in enumerate(SIZES)]
    for result in (by_itself, *ranks):
        assert result["metrics"]["resumed"]["x"] == pytest.approx(torch.cat(rows).mean().item(), rel=1e-12)


def test_active_units_of_two_ranks_are_those_of_one(ranks: list[dict[str, Any]], by_itself: dict[str, Any]) -> None:
    for result in ranks:
        assert result["metrics"]["active_units"] == by_itself["metrics"]["active_units"] == 2
        torch.testing.assert_close(
            result["metrics"]["variances"], by_itself["metrics"]["variances"], rtol=1e-5, atol=1e-9
        )


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


def test_outside_a_group_collectives_do_nothing(by_itself: dict[str, Any]) -> None:
    assert by_itself["collectives"] == {
        "rank": 0,
        "world": 1,
        "sum": [1.0, 2.0],
        "in_place": True,
        "from_rank_zero": [0, 17, 2**40],
        "wrapped": "Linear",
        "broadcasts_buffers": None,
    }
