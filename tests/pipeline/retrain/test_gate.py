"""The gate: what it promotes, and what it never does."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.retrain.config import LimitConfig, RetrainConfig
from pipeline.retrain.gate import decide

numbers = st.floats(-1e6, 1e6)
broken = st.sampled_from([math.nan, math.inf, -math.inf])
directions = st.sampled_from(["min", "max"])


def figures(value: float, **more: float) -> dict[str, float]:
    return {"neg_elbo_nats": value, **more}


def config(direction: str = "min", min_gain: float = 0.0, **limits: LimitConfig) -> RetrainConfig:
    return RetrainConfig(direction=direction, min_gain=min_gain, limits=limits)  # type: ignore[arg-type]


@given(numbers, numbers, directions, st.floats(0, 1e3))
def test_a_worse_or_equal_model_is_never_promoted(old: float, new: float, better: str, least: float) -> None:
    decision = decide(figures(old), figures(new), config(better, least))
    if decision.promoted:
        assert (new < old) if better == "min" else (new > old)
        assert decision.gain is not None
        assert decision.gain >= least


@given(numbers, numbers, directions, st.floats(0, 1e3))
def test_of_two_models_at_most_one_beats_the_other(one: float, other: float, better: str, least: float) -> None:
    there, back = (decide(figures(a), figures(b), config(better, least)) for a, b in ((one, other), (other, one)))
    assert not (there.promoted and back.promoted)


@given(numbers, numbers, directions)
def test_more_asked_for_never_promotes_more(old: float, new: float, better: str) -> None:
    promoted = [decide(figures(old), figures(new), config(better, least)).promoted for least in (0.0, 0.5, 10.0, 1e5)]
    assert promoted == sorted(promoted, reverse=True)


@given(st.integers(-1000, 1000), st.integers(1, 1000), directions)
def test_a_gain_of_exactly_what_is_asked_for_is_enough_and_a_millionth_less_is_not(
    old: int, thousandths: int, better: str
) -> None:
    least, sign = thousandths / 1000, -1 if better == "min" else 1
    enough, short = (decide(figures(old), figures(old + sign * gain), config(better, least))
                     for gain in (least, least - 1e-6))  # fmt: skip
    assert enough.promoted
    assert not short.promoted
    assert enough.gain == pytest.approx(least)


@given(numbers | broken, broken, directions)
def test_a_figure_that_is_not_finite_is_refused(old: float, new: float, better: str) -> None:
    decision = decide(figures(old), figures(new), config(better))
    assert not decision.promoted
    assert "its neg_elbo_nats is not finite" in decision.reasons


@given(st.none() | broken, numbers, numbers, directions)
def test_without_a_champion_that_can_be_compared_the_limits_alone_decide(
    old: float | None, new: float, active: float, better: str
) -> None:
    champion = None if old is None else figures(old)
    decision = decide(champion, figures(new, active_units=active), config(better, 5.0, active_units=LimitConfig(min=2)))
    assert decision.promoted is (active >= 2)
    assert decision.gain is None


@given(numbers, numbers, st.floats(-10, 10), st.floats(-10, 10) | st.none(), st.floats(-10, 10) | st.none())
def test_a_model_beyond_a_limit_is_never_promoted(
    old: float, new: float, value: float, least: float | None, most: float | None
) -> None:
    assume((least, most) != (None, None) and (least is None or most is None or least <= most))
    limited = config(mse=LimitConfig(min=least, max=most))
    within = (least is None or value >= least) and (most is None or value <= most)
    decision = decide(figures(old), figures(new, mse=value), limited)
    assert decision.promoted is (within and decide(figures(old), figures(new), config()).promoted)
    assert decision.checks[0].holds is within


def test_a_limit_on_a_figure_that_the_family_does_not_report_is_not_asked_unless_it_is_required() -> None:
    free, bound = (config(codebook_used_fraction=LimitConfig(min=0.5, required=required)) for required in (False, True))
    assert decide(figures(2), figures(1), free).promoted
    assert decide(figures(2), figures(1), free).checks == ()
    kept = decide(figures(2), figures(1), bound)
    assert not kept.promoted
    assert kept.reasons == ("it reports no codebook_used_fraction, which retrain.limits requires",)


def test_a_limited_figure_that_is_no_number_breaks_the_limit() -> None:
    decision = decide(figures(2), figures(1, mse=math.nan), config(mse=LimitConfig(max=3)))
    assert not decision.promoted


@pytest.mark.parametrize(
    ("metric", "direction", "promoted"),
    [(None, None, True), ("ssim", None, False), ("ssim", "min", True), ("mse", None, False), ("mse", "max", True)],
)
def test_the_metric_and_its_direction_are_those_given_else_those_known(
    metric: str | None, direction: str | None, promoted: bool
) -> None:
    old, new = figures(2, ssim=0.9, mse=0.1), figures(1, ssim=0.8, mse=0.2)
    asked = RetrainConfig(metric=metric, direction=direction)  # type: ignore[arg-type]
    assert decide(old, new, asked).promoted is promoted


def test_a_family_without_a_prior_is_judged_by_its_distortion() -> None:
    decision = decide({"distortion_nats": 2.0}, {"distortion_nats": 1.0}, RetrainConfig())
    assert (decision.metric, decision.direction, decision.gain) == ("distortion_nats", "min", 1.0)


def test_a_metric_that_a_model_does_not_report_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"retrain.metric: the challenger reports no mze; did you mean 'mse'\?"):
        decide(None, figures(1, mse=1), RetrainConfig(metric="mze"))


def test_every_reason_against_a_model_is_given() -> None:
    decision = decide(figures(1), figures(2, mse=4, active_units=1), config(
        "min", 0.5, mse=LimitConfig(max=3), active_units=LimitConfig(min=2, max=10)))  # fmt: skip
    assert decision.reasons == (
        "its neg_elbo_nats is no better than the champion's",
        "its mse is 4, and retrain.limits asks for at most 3",
        "its active_units is 1, and retrain.limits asks for at least 2 and at most 10",
    )
