"""Who is measured."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from bench.report import bf16_units
from bench.training import handwritten, ours, pythae_trainer
from bench.training.clock import Ended
from pipeline.train.run import TrainRun

Fit: TypeAlias = Callable[[TrainRun, Ended], None]

HAND, PYTHAE = "hand-written", "pythae"
STEP, LOOP = "our step", "our whole loop"
FP32, BF16, COMPILED = "fp32", "bf16", "bf16, compiled"


@dataclass(frozen=True)
class System:
    """One of them.

    Attributes:
        fit: trains, and tells of the end of each epoch; what that raises ends it.
        run: what it trains, in its precision.
        missing: why it cannot be measured; empty: it can.
    """

    name: str
    fit: Fit
    run: TrainRun
    missing: str = ""


def name_of(who: str, how: str) -> str:
    return f"{who}, {how}"


def systems(run: TrainRun, *, compiled: bool) -> list[System]:
    """All of them on the data, model, batch size and rate of `run`; without torch.compile unless `compiled`."""
    ways = {FP32: _as(run, "fp32"), BF16: _as(run, "bf16")}
    if compiled:
        ways[COMPILED] = _as(run, "bf16", compile="on")
    loops: dict[str, Fit] = {HAND: handwritten.fit, STEP: ours.fit_steps, LOOP: ours.fit_loop}
    no_bf16 = "" if bf16_units() else "this processor has no bf16 units"
    found = [
        System(name_of(who, how), fit, one, "" if how == FP32 else no_bf16)
        for who, fit in loops.items()
        for how, one in ways.items()
    ]
    peer = System(name_of(PYTHAE, FP32), pythae_trainer.fit, ways[FP32], pythae_trainer.MISSING)
    return [*found[: len(ways)], peer, *found[len(ways) :]]


def _as(run: TrainRun, precision: Literal["fp32", "bf16"], **changes: Any) -> TrainRun:
    return replace(run, train=replace(run.train, precision=precision, **changes))
