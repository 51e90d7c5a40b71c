"""The learning rate as a pure function of the step."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_core.schedules import one_cycle

totals = st.integers(1, 2000)
peaks = st.floats(1e-5, 1.0)
fractions = st.floats(0, 1)


@settings(deadline=None)
@given(totals, peaks, fractions)
def test_the_rate_rises_over_the_warm_up_and_falls_after_it(total: int, peak: float, fraction: float) -> None:
    rates = [one_cycle(step, total_steps=total, peak=peak, warmup_fraction=fraction) for step in range(total + 1)]
    warmup = int(fraction * total)
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[warmup] == pytest.approx(peak)
    assert max(rates) <= peak * (1 + 1e-12)
    assert min(rates) >= peak * 1e-4 * (1 - 1e-9)


@settings(deadline=None)
@given(totals, peaks, st.floats(0, 0.9))
def test_the_rate_ends_at_a_ten_thousandth_of_the_peak(total: int, peak: float, fraction: float) -> None:
    last = one_cycle(total, total_steps=total, peak=peak, warmup_fraction=fraction)
    assert last == pytest.approx(peak / 10_000)
    assert one_cycle(total + 50, total_steps=total, peak=peak, warmup_fraction=fraction) == pytest.approx(last)


def test_the_warm_up_is_linear_from_a_twenty_fifth_of_the_peak() -> None:
    rates = [one_cycle(step, total_steps=100, peak=0.5, warmup_fraction=0.3) for step in range(31)]
    assert rates[0] == pytest.approx(0.5 / 25)
    assert rates[15] == pytest.approx((0.5 / 25 + 0.5) / 2)
    assert rates[30] == pytest.approx(0.5)
    steps = [b - a for a, b in pairwise(rates)]
    assert steps == pytest.approx([steps[0]] * 30)


def test_the_fall_is_a_cosine() -> None:
    for step in (20, 40, 60, 80, 100):
        rate = one_cycle(step, total_steps=100, peak=1.0, warmup_fraction=0.2)
        expected = 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (step - 20) / 80)) / 2
        assert rate == pytest.approx(expected)


def test_without_a_warm_up_the_first_step_is_at_the_peak() -> None:
    rates = [one_cycle(step, total_steps=10, peak=0.1, warmup_fraction=0.0) for step in range(11)]
    assert rates[0] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)


def test_with_nothing_but_warm_up_the_rate_only_rises() -> None:
    rates = [one_cycle(step, total_steps=10, peak=0.1, warmup_fraction=1.0) for step in range(10)]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(0.1 / 25)


def test_a_run_of_one_step_has_a_rate() -> None:
    assert one_cycle(0, total_steps=1, peak=0.1, warmup_fraction=0.3) == pytest.approx(0.1)
