"""Pure functions of the global step: weights, temperatures and learning rates over a run."""

import math
from typing import assert_never

import torch
from torch import Tensor

from vae_core.config import CyclicalConfig, ModelConfig, OneCycleConfig, RampConfig, Scheduled


def value_at(scheduled: Scheduled, progress: float) -> float:
    """The value at `progress` = step / total steps, from 0 to 1."""
    match scheduled:
        case RampConfig():
            return _ramp(scheduled, min(1.0, progress / scheduled.until))
        case CyclicalConfig(start=start, end=end):
            within = progress * scheduled.cycles % 1.0 if progress < 1 else 1.0
            return start + (end - start) * min(1.0, within / scheduled.rise)
        case OneCycleConfig():
            return _one_cycle(scheduled, progress)
        case int() | float():
            return float(scheduled)
        case other:
            assert_never(other)


def weights_at(config: ModelConfig, progress: float, device: torch.device) -> dict[str, Tensor]:
    """0-dim float32 tensors: the value of each field of `config` that may be a schedule, and is set."""
    values = {name: getattr(config, name) for name in config.SCHEDULED}
    return {
        name: torch.tensor(value_at(value, progress), dtype=torch.float32, device=device)
        for name, value in values.items()
        if value is not None
    }


def _ramp(ramp: RampConfig, way: float) -> float:
    match ramp.kind:
        case "linear":
            return ramp.start + (ramp.end - ramp.start) * way
        case "cosine":
            return ramp.end + (ramp.start - ramp.end) * 0.5 * (1 + math.cos(math.pi * way))
        case "exponential":
            return float(ramp.start * (ramp.end / ramp.start) ** way)
        case other:
            assert_never(other)


def _one_cycle(cycle: OneCycleConfig, progress: float) -> float:
    if progress < cycle.warmup:
        return cycle.peak * (1 + 24 * progress / cycle.warmup) / 25
    falling = (progress - cycle.warmup) / (1 - cycle.warmup)
    return cycle.peak * (1e-4 + (1 - 1e-4) * 0.5 * (1 + math.cos(math.pi * min(1.0, falling))))
