"""What a sweep tries: distinct combinations, never the baseline, the same for the same seed."""

import math

from hypothesis import given
from hypothesis import strategies as st

from pipeline.tune.space import current, draw
from vae_core.config import MLPConfig, VAEConfig

SPACE = {"beta": [0.5, 1.0, 2.0], "latent_dim": [2, 4, 8, 16], "network.activation": ["relu", "tanh"]}
MODEL = VAEConfig(kind="vae", latent_dim=4, network=MLPConfig(kind="mlp", hidden=(8,)))

spaces = st.dictionaries(
    st.sampled_from("abcd"), st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True), max_size=4
)


def test_the_baseline_has_values_for_the_swept_keys_at_any_depth() -> None:
    assert current(MODEL, SPACE) == {"beta": 1.0, "latent_dim": 4, "network.activation": "relu"}


@given(spaces, st.integers(0, 200), st.integers(0, 2**32), st.booleans())
def test_draws_are_distinct_from_each_other_and_from_the_baseline(
    space: dict[str, list[int]], count: int, seed: int, inside: bool
) -> None:
    known = {key: values[-1] if inside else 99 for key, values in space.items()}
    drawn = draw(space, count=count, seed=seed, known=known)
    assert all(list(combination) == list(space) for combination in drawn)
    assert all(value in space[key] for combination in drawn for key, value in combination.items())
    distinct = {tuple(combination.values()) for combination in drawn}
    assert len(distinct) == len(drawn)
    assert tuple(known.values()) not in distinct
    others = math.prod(map(len, space.values())) - inside if space else 0
    assert len(drawn) == min(count, others)


def test_draws_depend_on_the_seed_alone() -> None:
    known = current(MODEL, SPACE)
    drawn = [draw(SPACE, count=6, seed=seed, known=known) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_all_there_is_can_be_drawn() -> None:
    assert len(draw(SPACE, count=100, seed=0, known=current(MODEL, SPACE))) == 3 * 4 * 2 - 1


def test_an_empty_space_has_nothing_to_draw() -> None:
    assert draw({}, count=5, seed=0, known={}) == []
