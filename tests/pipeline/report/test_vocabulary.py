import math

import pytest

from pipeline.report.vocabulary import ABSENT, METRICS, channel_names, figure, in_order, size, written


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (1234.567, 2, "1,234.57"),
        (-0.5, 1, "−0.5"),
        (-0.001, 2, "0.00"),
        (15, -1, "15"),
        (14.5, -1, "14.50"),
        (2.384e-06, -2, "2.38e−06"),
        (0.0, -2, "0.00e+00"),
    ],
)
def test_numbers_are_written_for_people(value: float, decimals: int, text: str) -> None:
    assert written(value, decimals) == text


def test_a_difference_has_a_sign_unless_it_rounds_to_nothing() -> None:
    shown = [written(value, 2, signed=True) for value in (1.5, -1.5, 0.001, -0.001)]
    assert shown == ["+1.50", "−1.50", "0.00", "0.00"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "7", True])
def test_what_is_no_finite_number_is_a_dash(value: object) -> None:
    assert figure(value, 2) == ABSENT


def test_known_metrics_keep_their_order_and_unknown_ones_follow_by_name() -> None:
    keys = ["zeta_nats", "rows", "alpha", "mse", "neg_elbo_nats"]
    assert [key for key, _ in in_order(keys, METRICS)] == ["neg_elbo_nats", "mse", "rows", "alpha", "zeta_nats"]
    assert dict(in_order(keys, METRICS))["zeta_nats"].unit == "nats per example"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB")])
def test_sizes_are_written_in_decimal_units(count: int, text: str) -> None:
    assert size(count) == text


def test_channels_have_names() -> None:
    assert [len(channel_names(channels)) for channels in range(1, 6)] == [1, 2, 3, 4, 5]
    assert channel_names(3) == ("red", "green", "blue")
    assert channel_names(5)[4] == "channel 4"
