"""The first 20 losses of each family, against a committed file: a change of the numbers must be meant.

After a change that is meant: `python tests/core/test_core_curves.py` writes the file anew.
"""

import json
from pathlib import Path

import pytest
from core_models import FAMILIES, digits, digits_model, step_once

from vae_core.config import ModelConfig, OneCycleConfig
from vae_core.schedules import value_at
from vae_core.training import make_optimizer

FILE = Path(__file__).with_name("loss_curves.json")
STEPS, ROWS = 20, 64
RATE = OneCycleConfig(kind="one_cycle", peak=5e-3)


def curve(config: ModelConfig) -> list[float]:
    """The mean negative ELBO of each of the first steps; the distortion of a model without one.

    Not the loss, which may be a surrogate whose value says nothing.
    """
    model, figures = digits_model(config), []
    optimizer = make_optimizer(model, learning_rate=0.0)
    for step in range(STEPS):
        batch, rate = digits(ROWS, start=ROWS * step), value_at(RATE, step / STEPS)
        terms = step_once(model, batch, optimizer, step=step, learning_rate=rate, progress=step / STEPS)
        figures.append(terms.parts.get("neg_elbo_nats", terms.parts["distortion_nats"]).mean().item())
    return figures


@pytest.mark.parametrize("family", FAMILIES)
def test_the_curve_is_the_committed_one_and_falls(family: str) -> None:
    expected = json.loads(FILE.read_text())[family]
    assert len(expected) == STEPS
    assert curve(FAMILIES[family]) == pytest.approx(expected, rel=1e-3)
    assert sum(expected[-5:]) < sum(expected[:5])


def test_the_file_holds_every_family_and_no_other() -> None:
    assert set(json.loads(FILE.read_text())) == set(FAMILIES)


if __name__ == "__main__":
    curves = {family: [round(figure, 5) for figure in curve(config)] for family, config in FAMILIES.items()}
    FILE.write_text(json.dumps(curves, indent=1) + "\n")
