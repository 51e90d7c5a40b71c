"""Schedules: pure functions of how far the run is, within their ends, for weights, temperatures and learning rates."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from core_models import categorical, vae, vqvae
from hypothesis import given
from hypothesis import strategies as st

from vae_core.config import CyclicalConfig, OneCycleConfig, RampConfig, RangeError, ScheduleConfig
from vae_core.schedules import value_at, weights_at

CPU = torch.device("cpu")
ends = st.floats(0.01, 100)
progresses = st.floats(0, 1)
ramps = st.builds(
    RampConfig,
    kind=st.sampled_from(["linear", "cosine", "exponential"]),
    start=ends,
    end=ends,
    until=st.floats(0.01, 1),
)
cycles = st.builds(
    CyclicalConfig, kind=st.just("cyclical"), start=ends, end=ends, cycles=st.integers(1, 9), rise=st.floats(0.01, 1)
)


def ramp(kind: Any = "linear", **fields: float) -> RampConfig:
    return RampConfig(kind=kind, **{"start": 1.0, "end": 3.0, **fields})


def one_cycle(**fields: float) -> OneCycleConfig:
    return OneCycleConfig(kind="one_cycle", **{"peak": 0.5, "warmup": 0.3, **fields})


@given(ends, progresses)
def test_a_number_is_the_same_all_along(value: float, progress: float) -> None:
    assert value_at(value, progress) == value


@given(ramps | cycles, progresses)
def test_a_value_lies_between_the_ends(schedule: RampConfig | CyclicalConfig, progress: float) -> None:
    low, high = sorted((schedule.start, schedule.end))
    assert low * (1 - 1e-9) <= value_at(schedule, progress) <= high * (1 + 1e-9)


@given(ramps)
def test_a_ramp_starts_and_stays_at_its_ends_and_never_turns_back(schedule: RampConfig) -> None:
    values = [value_at(schedule, i / 50) for i in range(51)]
    assert values[0] == pytest.approx(schedule.start)
    for progress in (schedule.until, (schedule.until + 1) / 2, 1.0):
        assert value_at(schedule, progress) == pytest.approx(schedule.end)
    rising = schedule.end >= schedule.start
    assert all((b >= a - 1e-9) if rising else (b <= a + 1e-9) for a, b in pairwise(values))


def test_ramps_are_arithmetic_geometric_or_half_a_cosine() -> None:
    assert value_at(ramp(until=0.5), 0.25) == pytest.approx(2.0)
    assert value_at(ramp("exponential", start=1.0, end=4.0), 0.5) == pytest.approx(2.0)
    assert value_at(ramp("cosine"), 0.25) == pytest.approx(3 - 2 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_a_cycle_rises_stays_and_begins_anew() -> None:
    schedule = CyclicalConfig(kind="cyclical", start=0.0, end=1.0, cycles=4, rise=0.5)
    values = [value_at(schedule, progress) for progress in (0, 0.0625, 0.125, 0.2, 0.25, 0.3125, 0.5, 1.0)]
    assert values == pytest.approx([0, 0.5, 1, 1, 0, 0.5, 0, 1])


@given(st.floats(1e-5, 1), st.floats(0, 0.95))
def test_one_cycle_rises_to_its_peak_and_falls_to_a_ten_thousandth(peak: float, warmup: float) -> None:
    schedule = one_cycle(peak=peak, warmup=warmup)
    assert value_at(schedule, warmup) == pytest.approx(peak)
    assert value_at(schedule, 1.0) == pytest.approx(peak / 10_000)
    rising = [value_at(schedule, warmup * i / 20) for i in range(21)]
    falling = [value_at(schedule, warmup + (1 - warmup) * i / 20) for i in range(21)]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


def test_one_cycle_warms_up_along_a_line_and_falls_along_a_cosine() -> None:
    rates = [value_at(one_cycle(), step / 100) for step in range(31)]
    assert [rates[0], rates[15], rates[30]] == pytest.approx([0.5 / 25, (0.5 / 25 + 0.5) / 2, 0.5])
    for step in (20, 40, 60, 80, 100):
        expected = 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (step - 20) / 80)) / 2
        assert value_at(one_cycle(peak=1.0, warmup=0.2), step / 100) == pytest.approx(expected)


BAD: list[tuple[Any, dict[str, float], str]] = [
    (ramp, {"until": 0.0}, "until"),
    (ramp, {"until": 1.1}, "until"),
    (one_cycle, {"peak": 0.0}, "peak"),
    (one_cycle, {"warmup": 1.0}, "warmup"),
    (one_cycle, {"warmup": -0.1}, "warmup"),
]


@pytest.mark.parametrize(("make", "fields", "name"), BAD)
def test_a_schedule_out_of_range_is_refused_by_name(make: Any, fields: dict[str, float], name: str) -> None:
    with pytest.raises(RangeError, match=f"^{name}: expected"):
        make(**fields)


def test_an_exponential_ramp_cannot_touch_zero() -> None:
    with pytest.raises(RangeError, match=r"^start: expected a number above 0, got 0"):
        ramp("exponential", start=0.0)


@pytest.mark.parametrize(
    ("make", "field", "schedule"),
    [
        (vae, "beta", ramp(start=-1.0)),
        (vae, "capacity", ramp(end=-1.0)),
        (vqvae, "commitment_weight", ramp(start=-0.1)),
        (categorical, "temperature", ramp(start=1.0, end=0.0)),
    ],
)
def test_a_schedule_that_leaves_the_range_of_its_field_is_refused(
    make: Any, field: str, schedule: ScheduleConfig
) -> None:
    with pytest.raises(RangeError, match=f"^{field}: expected a number .+ or a schedule of such"):
        make(**{field: schedule})


def test_the_weights_of_a_step_are_the_values_of_the_fields_that_are_set() -> None:
    config = vae(beta=ramp(start=0.0, end=4.0), total_correlation=2.0)
    found = weights_at(config, 0.25, CPU)
    assert {name: value.item() for name, value in found.items()} == {"beta": 1.0, "total_correlation": 2.0}
    assert all(value.dtype == torch.float32 and value.shape == () for value in found.values())
