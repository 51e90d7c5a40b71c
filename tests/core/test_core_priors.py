"""The prior over codes: nothing leaks, nothing is out of sight, drawing agrees with the likelihood, steps are exact."""

import copy
import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vae_core.config.base import RangeError
from vae_core.config.priors import PixelCNNConfig
from vae_core.noise import Noise
from vae_core.priors import CodePrior, build_prior, prior_step, training, uniform_nats
from vae_core.priors.files import describe_prior, load_prior
from vae_core.priors.layers import HorizontalLayer, VerticalLayer, dilations
from vae_core.serialize import CONFIG, WEIGHTS, ModelFileError, dump_tensors

CODES = 5
GRIDS: dict[str, tuple[tuple[int, ...], ...]] = {
    "square": ((5, 5),),
    "wide": ((3, 9),),
    "tall": ((9, 2),),
    "column": ((6, 1),),
    "audio": ((1, 12),),
    "vector": ((12,),),
    "one": ((1, 1),),
    "two": ((2, 3), (4, 6)),
    "three": ((2,), (1, 4), (3, 5)),
}
every_grid = pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS.keys())


def make(
    grids: Sequence[tuple[int, ...]], *, num_codes: int = CODES, condition_dim: int = 0, **fields: Any
) -> CodePrior:
    """A prior whose every weight is at work: far from the initial ones, positions included."""
    prior = build_prior(
        PixelCNNConfig(**{"channels": 8, "layers": 4, **fields}), grids, num_codes, condition_dim, seed=1
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return prior


def codes_of(prior: CodePrior, rows: int, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(prior.num_codes, (rows, *grid), generator=generator) for grid in prior.grids)


def condition_of(prior: CodePrior, rows: int, seed: int = 0) -> Tensor | None:
    shape = (rows, prior.condition_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) if prior.condition_dim else None


def every_code(prior: CodePrior) -> tuple[Tensor, ...]:
    """All values that the codes of an image can have."""
    whole = torch.tensor(list(product(range(prior.num_codes), repeat=prior.positions)))
    parts = whole.split([math.prod(grid) for grid in prior.grids], dim=1)
    return tuple(part.reshape(len(whole), *grid) for part, grid in zip(parts, prior.grids, strict=True))


def noise_of(rows: int, step: int = 0, of: int | None = None, first: int = 0) -> Noise:
    return Noise(seed=0, scope="prior", step=step, position=first + torch.arange(rows), rows=of or rows)


def test_each_field_is_checked() -> None:
    for wrong in ({"channels": 0}, {"layers": 0}, {"dropout": 1.0}, {"dropout": -0.1}):
        with pytest.raises(RangeError, match=next(iter(wrong))):
            PixelCNNConfig(**wrong)


@pytest.mark.parametrize("grids", [(), ((),), ((2, 3, 4),), ((0, 3),)])
def test_what_is_no_grid_is_refused(grids: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="grids: expected"):
        build_prior(PixelCNNConfig(), grids, 4)


def test_initial_weights_follow_from_the_seed_and_the_global_generator_stays() -> None:
    before = torch.get_rng_state()
    first, same, other = (build_prior(PixelCNNConfig(channels=4, layers=2), ((2, 2),), 3, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert dump_tensors(first.state_dict()) == dump_tensors(same.state_dict()) != dump_tensors(other.state_dict())


@every_grid
@pytest.mark.parametrize("layers", [2, 5])
def test_every_position_sees_all_before_it_and_nothing_after(grids: tuple[tuple[int, ...], ...], layers: int) -> None:
    prior = make(grids, layers=layers).double()
    for level, grid in enumerate(grids):
        size = math.prod(grid)
        moved = torch.stack([effects(prior, level, seed) for seed in range(4)]).amax(0)
        later = torch.ones(size, size, dtype=torch.bool).triu(1)
        assert moved[~later].max() < 1e-13
        if layers == 5 and size > 1:
            assert moved[later].min() > 1e-10


def effects(prior: CodePrior, level: int, seed: int) -> Tensor:
    """[changed, position]: how far another code at one position of a level moves the logits of each."""
    size = math.prod(prior.grids[level])
    codes = [one.expand(size + 1, *one.shape[1:]).clone() for one in codes_of(prior, 1, seed)]
    flat, changed = codes[level].view(size + 1, size), torch.arange(size)
    flat[changed, changed] = (flat[changed, changed] + 1) % CODES  # in row i the code at i, in the last row none
    with torch.no_grad():
        logits = prior.logits(codes, None)[level].reshape(size + 1, size, CODES)
    return (logits[:size] - logits[size]).abs().amax(-1)


@given(layers=st.integers(1, 12), height=st.integers(1, 40), width=st.integers(1, 40))
def test_layers_are_dilated_only_where_they_must_be(layers: int, height: int, width: int) -> None:
    found = dilations(layers, height, width)
    reach, needed = sum(found), max(width - 1, height - 2)
    assert len(found) == layers
    assert reach >= needed or found == tuple(2**i for i in range(layers))
    assert (set(found) == {1}) == (layers >= needed or layers == 1)


def test_levels_see_those_above_and_none_below() -> None:
    prior = make(GRIDS["three"]).double()
    codes = [one.expand(2, *one.shape[1:]).clone() for one in codes_of(prior, 1)]
    for changed in range(3):
        other = [one.clone() for one in codes]
        other[changed][1].add_(1).remainder_(CODES)
        with torch.no_grad():
            logits = prior.logits(other, None)
        moved = [bool((one[0] != one[1]).any()) for one in logits]
        assert moved[:changed] == [False] * changed
        assert moved[changed + 1 :] == [True] * (2 - changed)
        below = logits[changed + 1] if changed < 2 else None
        assert below is None or bool((below[0, 0, 0] != below[1, 0, 0]).any())  # even the first code of the next level


@every_grid
@pytest.mark.parametrize("condition_dim", [0, 3])
def test_walking_gives_the_logits_of_the_whole_evaluation(
    grids: tuple[tuple[int, ...], ...], condition_dim: int
) -> None:
    prior = make(grids, condition_dim=condition_dim)
    codes, c = codes_of(prior, 7), condition_of(prior, 7)
    with torch.no_grad():
        whole = [one.reshape(7, -1, CODES) for one in prior.logits(codes, c)]
    seen = []

    def forced(level: int, position: int, logits: Tensor) -> Tensor:
        seen.append((level, position))
        torch.testing.assert_close(logits, whole[level][:, position], rtol=1e-5, atol=1e-5)
        return codes[level].view(7, -1)[:, position]

    back = prior.walk(7, c, forced)
    assert all(torch.equal(one, other) for one, other in zip(back, codes, strict=True))
    assert seen == [(level, at) for level, grid in enumerate(grids) for at in range(math.prod(grid))]


def test_walking_evaluates_each_position_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = make(((2, 2), (4, 6)), layers=3)
    rows, steps = [], []
    row, step = VerticalLayer.row, HorizontalLayer.step

    def counted_row(self: VerticalLayer, window: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        rows.append(context.shape[1])
        return row(self, window, context)

    def counted_step(self: HorizontalLayer, past: Tensor, here: Tensor, *rest: Any) -> Tensor:
        steps.append(here.shape[:-1])
        return step(self, past, here, *rest)

    monkeypatch.setattr(VerticalLayer, "row", counted_row)
    monkeypatch.setattr(HorizontalLayer, "step", counted_step)
    prior.sample(5, None, generator=torch.Generator())
    assert rows == [2] * 3 * 2 + [6] * 3 * 4
    assert steps == [(5,)] * 3 * (4 + 24)


@pytest.mark.parametrize("grids", [((2, 3),), ((1, 6),), ((1, 2), (2, 2)), ((1,), (2,), (3,))])
@pytest.mark.parametrize("condition_dim", [0, 2])
def test_probabilities_of_all_codes_sum_to_one(grids: tuple[tuple[int, ...], ...], condition_dim: int) -> None:
    prior = make(grids, num_codes=3, condition_dim=condition_dim)
    codes = every_code(prior)
    c = condition_of(prior, 1)
    with torch.no_grad():
        nll = prior.nll(codes, None if c is None else c.expand(len(codes[0]), -1))
    assert nll.shape == (3**6,)
    assert nll.dtype == torch.float32
    assert (-nll.double()).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_draws_have_the_probabilities_of_the_likelihood() -> None:
    prior, count = make(((1, 2), (2, 1)), num_codes=3, condition_dim=2), 40_000
    c = condition_of(prior, 1)
    assert c is not None
    drawn = prior.sample(count, c.expand(count, -1), generator=torch.Generator().manual_seed(3))
    codes = every_code(prior)
    with torch.no_grad():
        expected = count * (-prior.nll(codes, c.expand(81, -1)).double()).exp()
    flat = torch.cat([one.flatten(1) for one in drawn], dim=1)
    found = torch.bincount(flat @ torch.tensor([27, 9, 3, 1]), minlength=81).double()
    assert expected.min() < 100 < expected.max()
    chi_square = ((found - expected) ** 2 / expected).sum().item()
    assert chi_square < 80 + 4 * math.sqrt(160)  # 80 degrees of freedom, four standard deviations


def test_draws_follow_their_generator_alone() -> None:
    prior = make(GRIDS["two"])
    before = torch.get_rng_state()
    first, same, other = (prior.sample(9, None, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert [one.shape for one in first] == [(9, 2, 3), (9, 4, 6)]
    assert {one.dtype for one in first} == {torch.int64}


def test_a_low_temperature_draws_the_most_probable_codes() -> None:
    prior = make(GRIDS["two"])
    cold, again = (prior.sample(4, None, generator=torch.Generator().manual_seed(s), temperature=1e-4) for s in (0, 1))
    greedy = prior.walk(4, None, lambda level, position, logits: logits.argmax(-1))
    for one, other, expected in zip(cold, again, greedy, strict=True):
        assert torch.equal(one, expected)
        assert torch.equal(other, expected)
    for wrong in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature: expected"):
            prior.sample(4, None, generator=torch.Generator(), temperature=wrong)


def test_the_cost_of_a_row_does_not_depend_on_the_others() -> None:
    prior = make(GRIDS["two"], condition_dim=3)
    codes, c = codes_of(prior, 6), condition_of(prior, 6)
    assert c is not None
    levels = prior(codes, c)
    alone = torch.cat([prior([one[i : i + 1] for one in codes], c[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(levels, alone)
    torch.testing.assert_close(prior.nll(codes, c), levels.sum(1))
    assert levels.shape == (6, 2)


def test_the_condition_matters_at_every_level() -> None:
    prior = make(GRIDS["two"], condition_dim=3)
    codes = [one.expand(2, *one.shape[1:]) for one in codes_of(prior, 1)]
    levels = prior(codes, condition_of(prior, 2))
    assert bool((levels[0] != levels[1]).all())


def test_what_does_not_fit_is_refused() -> None:
    free, bound = make(GRIDS["two"]), make(GRIDS["two"], condition_dim=3)
    codes = codes_of(free, 2)
    with pytest.raises(ValueError, match=r"condition: expected \(2, 3\), got None"):
        bound.nll(codes, None)
    with pytest.raises(ValueError, match=r"condition: expected None, got \(2, 3\)"):
        free.nll(codes, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"condition: expected \(4, 3\), got \(2, 3\)"):
        bound.sample(4, torch.zeros(2, 3), generator=torch.Generator())
    for wrong in (codes[:1], codes[::-1], (codes[0][:1], codes[1])):
        with pytest.raises(ValueError, match="codes: expected"):
            free.nll(wrong, None)


def test_a_prior_without_knowledge_costs_as_much_as_the_uniform_one() -> None:
    prior = make(GRIDS["two"])
    for level in prior.levels:
        for parameter in level.head.parameters():
            torch.nn.init.zeros_(parameter)
    nll = prior.nll(codes_of(prior, 3), None)
    torch.testing.assert_close(nll, torch.full((3,), uniform_nats(prior)))
    assert uniform_nats(prior) == pytest.approx(30 * math.log(CODES))


def compiled(function: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_a_step_compiles_into_one_graph() -> None:
    prior = make(GRIDS["vector"], condition_dim=3, dropout=0.5, layers=2)
    codes, c, keep = codes_of(prior, 4), condition_of(prior, 4), prior.draws(noise_of(4))
    torch.testing.assert_close(compiled(prior)(codes, c, keep), prior(codes, c, keep))


def test_the_cost_compiles_into_one_graph() -> None:
    prior = make(GRIDS["two"], condition_dim=3, layers=2)
    codes, c = codes_of(prior, 4), condition_of(prior, 4)
    torch.testing.assert_close(compiled(prior.nll)(codes, c), prior.nll(codes, c))


def test_low_precision_networks_give_costs_of_full_precision() -> None:
    prior = make(GRIDS["two"])
    codes = codes_of(prior, 4)
    with torch.autocast("cpu", torch.bfloat16):
        low = prior.nll(codes, None)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, prior.nll(codes, None), rtol=0.05, atol=0)


def test_dropout_is_drawn_by_position_and_keeps_the_mean() -> None:
    prior = make(GRIDS["two"], dropout=0.25)
    keep, part = prior.draws(noise_of(500)), prior.draws(noise_of(3, of=500, first=100))
    assert keep is not None
    assert part is not None
    assert keep.shape == (500, 2, 4, 8)
    assert torch.equal(part, keep[100:103])
    assert keep.unique().tolist() == pytest.approx([0, 4 / 3])
    assert keep.mean().item() == pytest.approx(1, abs=0.02)
    codes = codes_of(prior, 3)
    assert not torch.equal(prior(codes, None, part), prior(codes, None))
    assert make(GRIDS["two"]).draws(noise_of(3)) is None


def test_dropout_lets_nothing_leak() -> None:
    prior = make(((3, 3),), dropout=0.5).double()
    codes = codes_of(prior, 2)
    codes[0][:] = codes[0][:1]
    codes[0][1, 1, 1] = (codes[0][0, 1, 1] + 1) % CODES
    keep = prior.draws(noise_of(1))
    assert keep is not None
    logits = prior.logits(codes, None, keep.expand(2, *keep.shape[1:]).double())[0].view(2, 9, CODES)
    assert torch.equal(logits[0, :5], logits[1, :5])


def sgd_step(
    prior: CodePrior, codes: Sequence[Tensor], weight: Tensor, noise: Noise, **fields: Any
) -> dict[str, Tensor]:
    """How far one step of rate 1 moves each parameter of a copy."""
    moved = copy.deepcopy(prior)
    optimizer = torch.optim.SGD(moved.parameters(), lr=123.0)
    step = {"learning_rate": 1.0, "max_grad_norm": 1e9, **fields}
    done = prior_step(moved, codes, None, optimizer, noise=noise, row_weight=weight, **step)
    assert not done.skipped
    assert not done.nll.requires_grad
    before = prior.state_dict()
    return {name: before[name] - after for name, after in moved.state_dict().items()}


def close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-6)


def test_a_step_descends_the_mean_cost_and_reaches_every_parameter() -> None:
    prior = make(GRIDS["two"])
    codes = codes_of(prior, 6)
    moved = sgd_step(prior, codes, torch.ones(6), noise_of(6))
    prior.nll(codes, None).mean().backward()
    close(moved, {name: p.grad for name, p in prior.named_parameters() if p.grad is not None})
    assert [name for name, p in prior.named_parameters() if p.grad is None] == []  # DDP would wait for it


def test_padding_does_not_count() -> None:
    prior = make(GRIDS["two"])
    codes = codes_of(prior, 6)
    weight = torch.tensor([1.0, 1, 0, 1, 0, 1])
    kept = [one[weight > 0] for one in codes]
    close(sgd_step(prior, codes, weight, noise_of(6, of=4)), sgd_step(prior, kept, torch.ones(4), noise_of(4)))


def test_ranks_average_to_the_step_of_the_joined_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = make(GRIDS["two"], dropout=0.2)
    codes = codes_of(prior, 7)
    whole = sgd_step(prior, codes, torch.ones(7), noise_of(7))
    monkeypatch.setattr(training, "world_size", lambda: 2)
    first = sgd_step(prior, [one[:5] for one in codes], torch.ones(5), noise_of(5, of=7))
    second = sgd_step(prior, [one[5:] for one in codes], torch.ones(2), noise_of(2, of=7, first=5))
    close(whole, {name: (first[name] + second[name]) / 2 for name in first})


def test_a_long_gradient_is_shortened() -> None:
    prior = make(GRIDS["two"])
    codes = codes_of(prior, 6)
    moved = sgd_step(prior, codes, torch.ones(6), noise_of(6), max_grad_norm=0.5)
    assert math.sqrt(sum(step.square().sum().item() for step in moved.values())) == pytest.approx(0.5, rel=1e-4)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    prior = make(GRIDS["one"])
    with torch.no_grad():
        prior.levels[0].context.position.fill_(math.nan)
    before = dump_tensors(prior.state_dict())
    optimizer = torch.optim.Adam(prior.parameters())
    done = prior_step(prior, codes_of(prior, 2), None, optimizer, noise=noise_of(2), row_weight=torch.ones(2),
                      learning_rate=1.0, max_grad_norm=1.0)  # fmt: skip
    assert done.skipped
    assert dump_tensors(prior.state_dict()) == before
    assert not optimizer.state


def test_it_learns_what_codes_have_in_common() -> None:
    """Rows that repeat the row above, a lower level that repeats the upper one: one free row of codes an image."""
    prior = build_prior(PixelCNNConfig(channels=16, layers=3), ((2, 4), (4, 4)), 4)
    optimizer = torch.optim.Adam(prior.parameters())
    generator = torch.Generator().manual_seed(0)
    for step in range(100):
        row = torch.randint(4, (32, 1, 4), generator=generator)
        codes = (row.expand(-1, 2, -1).clone(), row.expand(-1, 4, -1).clone())
        levels = prior_step(prior, codes, None, optimizer, noise=noise_of(32, step), row_weight=torch.ones(32),
                            learning_rate=5e-3, max_grad_norm=10.0).nll.mean(0)  # fmt: skip
    free = 4 * math.log(4)
    assert levels[0].item() == pytest.approx(free, rel=0.1)
    assert levels[1].item() < 0.1 * free
    assert uniform_nats(prior) == pytest.approx(6 * free)


def save(prior: CodePrior, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / WEIGHTS).write_bytes(dump_tensors(prior.state_dict()))
    (directory / CONFIG).write_text(json.dumps(describe_prior(prior)), encoding="utf-8")
    return directory


@every_grid
def test_a_prior_comes_back_as_it_was(grids: tuple[tuple[int, ...], ...], tmp_path: Path) -> None:
    prior = make(grids, condition_dim=3, dropout=0.1)
    back = load_prior(save(prior, tmp_path))
    codes, c = codes_of(prior, 3), condition_of(prior, 3)
    assert torch.equal(prior.nll(codes, c), back.nll(codes, c))
    assert describe_prior(back) == describe_prior(prior)
    assert back.grids == prior.grids
    assert not any(module.training for module in back.modules())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prior": {"kind": "transformer"}}, "kind: expected 'pixelcnn', got 'transformer'"),
        ({"prior": {"kind": "pixelcnn", "chanels": 8}}, "chanels"),
        ({"grids": [[0, 4]]}, "grids: expected"),
        ({"prior": {"kind": "pixelcnn", "layers": 0}}, "layers: expected"),
        ({"num_codes": "many"}, CONFIG),
        ({"num_codes": -2}, CONFIG),
        ({"prior": None}, CONFIG),
        ({"grids": 4}, CONFIG),
        ({"num_codes": 6}, WEIGHTS),
    ],
)
def test_a_description_that_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    prior = make(GRIDS["two"])
    save(prior, tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({**describe_prior(prior), **changes}))
    with pytest.raises(ModelFileError, match=match):
        load_prior(tmp_path)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    directory = save(make(GRIDS["one"]), tmp_path)
    weights = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(weights[:-7])
    with pytest.raises(ModelFileError, match=WEIGHTS):
        load_prior(directory)
    (directory / WEIGHTS).unlink()
    with pytest.raises(ModelFileError, match=WEIGHTS):
        load_prior(directory)
    (directory / CONFIG).write_text("[1, 2]")
    with pytest.raises(ModelFileError, match=CONFIG):
        load_prior(directory)
    (directory / CONFIG).unlink()
    with pytest.raises(ModelFileError, match=CONFIG):
        load_prior(directory)


@settings(max_examples=25)
@given(
    grids=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    layers=st.integers(1, 4),
    rows=st.integers(1, 3),
)
def test_any_grids_walk_as_they_are_evaluated(grids: list[tuple[int, int]], layers: int, rows: int) -> None:
    prior = make(grids, layers=layers, channels=3)
    drawn = prior.sample(rows, None, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = [one.reshape(rows, -1, CODES) for one in prior.logits(drawn, None)]

    def forced(level: int, position: int, logits: Tensor) -> Tensor:
        torch.testing.assert_close(logits, whole[level][:, position], rtol=1e-5, atol=1e-5)
        return drawn[level].view(rows, -1)[:, position]

    prior.walk(rows, None, forced)
