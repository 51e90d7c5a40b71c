"""Optuna's suggestions: distinct, within the space, and the same when the same answers are given again."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tune.config import Range, SearchConfig
from pipeline.tune.suggest import Answer, Modelled, suggestions

SPACE = {
    "beta": Range(low=0.1, high=4.0),
    "peak": Range(low=1e-4, high=1e-2, log=True),
    "width": Range(low=8, high=64, step=8),
    "dropout": Range(low=0.0, high=0.55, step=0.1),
    "activation": ("relu", "tanh"),
}


def config(**changes: Any) -> SearchConfig:
    values = {"trials": 12, "seed": 0, "kind": "tpe", "batch": 4, "scheduler": "none", "rungs": (), **changes}
    return SearchConfig(**values)


def cost(values: Any) -> float:
    return float((values["beta"] - 1) ** 2 + abs(values["width"] - 32) / 32)


def asked(space: Any, settings: SearchConfig, answer: Callable[[Any], Answer], directions: Any = ("min",)) -> list[Any]:
    """Every combination of a sweep in which each gives `answer`."""
    study = suggestions(space, settings, directions)
    found = []
    while batch := study.ask():
        study.tell([answer(values) for values in batch])
        found += batch
    return found


def completed(values: Any) -> Answer:
    return Answer("completed", (cost(values),), 5)


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 12))
def test_suggestions_are_distinct_and_within_the_space(seed: int, batch: int, trials: int) -> None:
    found = asked(SPACE, config(seed=seed, batch=batch, trials=trials), completed)
    assert len(found) == len({tuple(values.values()) for values in found}) == trials
    for values in found:
        assert list(values) == list(SPACE)
        assert 0.1 <= values["beta"] <= 4
        assert 1e-4 <= values["peak"] <= 1e-2
        assert values["width"] in range(8, 65, 8)
        assert values["dropout"] in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
        assert values["activation"] in ("relu", "tanh")


def test_the_same_answers_lead_to_the_same_suggestions() -> None:
    one, same, other = (asked(SPACE, config(seed=seed), completed) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert asked(SPACE, config(trials=20), completed)[:12] == one


def test_other_answers_lead_to_other_suggestions() -> None:
    far = asked(SPACE, config(trials=30), lambda values: Answer("completed", (-cost(values),), 5))
    near = asked(SPACE, config(trials=30), completed)
    first = max(config().batch, 2 * len(SPACE))
    assert near[:4] == far[:4]
    assert near[first:] != far[first:]


def test_suggestions_come_closer_to_the_best() -> None:
    space = {"beta": Range(low=0.1, high=4.0), "width": Range(low=8, high=64, step=8)}
    found = [cost(values) for values in asked(space, config(trials=40), completed)]
    assert sum(found[20:]) < 0.7 * sum(found[:20])


def test_what_failed_or_was_stopped_is_answered_too() -> None:
    def answer(values: Any) -> Answer:
        if values["width"] > 48:
            return Answer("failed", (), 0)
        return Answer("stopped" if values["width"] > 24 else "completed", (cost(values),), 2)

    assert len(asked(SPACE, config(trials=24), answer)) == 24


def test_several_objectives_are_suggested_for() -> None:
    def answer(values: Any) -> Answer:
        return Answer("stopped" if values["width"] > 32 else "completed", (values["beta"], -values["beta"]), 3)

    one, same = (asked(SPACE, config(trials=16), answer, ("min", "max")) for _ in range(2))
    assert one == same
    assert len(one) == 16


def test_a_small_space_is_tried_whole() -> None:
    found = asked({"a": (1, 2), "b": (3, 4)}, config(trials=20), lambda values: Answer("completed", (values["a"],), 1))
    assert sorted((values["a"], values["b"]) for values in found) == [(1, 3), (1, 4), (2, 3), (2, 4)]


def test_an_empty_space_has_no_suggestions() -> None:
    assert Modelled({}, config(), ("min",)).ask() == []


def test_optuna_says_nothing(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        asked(SPACE, config(trials=6), lambda values: Answer("failed", (), 0))
    assert caplog.text == ""
    assert capsys.readouterr().err == ""
