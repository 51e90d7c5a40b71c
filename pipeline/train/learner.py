"""What a run learns with: the model, compiled and wrapped for several ranks, its optimizer and its average."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.train import checkpoints
from pipeline.train.config import TrainConfig
from vae_core import distributed
from vae_core.averaging import WeightAverage
from vae_core.batch import Batch
from vae_core.models import Model
from vae_core.noise import Noise
from vae_core.schedules import value_at
from vae_core.training import Forward, Joined, Step, compiled_forward, forward, make_optimizer, rehearse, train_step


class Learner:
    """Of one rank. All ranks hold the same.

    Args:
        core: with its initial weights.
        max_rows: of one forward pass; of more, the gradients are added up.

    Attributes:
        core: the model inside its wrappers.
    """

    def __init__(self, core: Model, config: TrainConfig, device: torch.device, max_rows: int | None) -> None:
        self.core, self._config, self._device, self._max_rows = core.to(device), config, device, max_rows
        if device.type == "cuda":  # on CPUs narrow convolutions are five times slower so
            core.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._average = WeightAverage(core, config.ema_decay) if config.ema_decay else None
        self._optimizer: Optimizer = make_optimizer(core, learning_rate=1.0)  # each step sets its own
        self._model: nn.Module = core
        self._forward: Forward = forward
        if config.compile != "off":
            self._forward = compiled_forward(cuda_graphs=config.compile == "cuda_graphs")

    @property
    def judged(self) -> Model:
        """The model that the run is judged by: with the average of the weights, where it keeps one."""
        return self._average.model if self._average else self.core

    def restore(self, found: checkpoints.Checkpoint) -> None:
        found.restore(self.core, self._optimizer, self._average)
        lay_out(self._optimizer)

    def wrap(self) -> None:
        """Let the ranks learn together from now on; every rank calls it, with the same weights."""
        if distributed.world_size() > 1 and self._config.compile != "off":
            self._model, self._forward = Joined(self.core, self._forward), Joined.call
        self._model = distributed.data_parallel(self._model, self._device)

    def rehearse(self, batch: Batch) -> None:
        """Make what follows the same whether the run was broken off here or not."""
        noise = Noise.of(batch, seed=self._config.seed, scope="rehearsal", step=0)
        rehearse(self._model, batch, noise, precision=self._config.precision, forward=self._forward,
                 max_rows=self._max_rows)  # fmt: skip

    def learn(self, batch: Batch, *, step: int, total_steps: int) -> Step:
        """Step number `step`, from 0, on this rank's rows; the host does not wait for it."""
        done = train_step(
            self._model,
            batch,
            self._optimizer,
            noise=Noise.of(batch, seed=self._config.seed, scope="train", step=step),
            learning_rate=value_at(self._config.learning_rate, step / total_steps),
            max_grad_norm=self._config.max_grad_norm,
            progress=step / total_steps,
            precision=self._config.precision,
            forward=self._forward,
            max_rows=self._max_rows,
        )
        if self._average:
            self._average.update(self.core, ~done.skipped)
        return done

    def snapshot(self, step: int, state: Mapping[str, Any]) -> checkpoints.Snapshot:
        return checkpoints.snapshot(step, self.core, self._optimizer, state, self._average)


def lay_out(optimizer: Optimizer) -> None:
    """Let moments lie in memory as their parameters do: a checkpoint's are contiguous, and fused kernels do not ask."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)
