"""Checkpoints of a run: a directory each, complete or absent. No pickle."""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline import files
from vae_core.averaging import WeightAverage
from vae_core.serialize import dump_tensors

KEEP = 2  # the newest, and the one before in case the newest was damaged
DIGESTS, AVERAGE = "digests.json", "average.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: every file is there and has its digest."""

    path: Path
    state: dict[str, Any]

    @property
    def weights(self) -> bytes:
        """The weights that the run is judged by, as safetensors: their average where it keeps one."""
        average = self.path / AVERAGE
        return (average if average.exists() else self.path / "model.safetensors").read_bytes()

    def restore(self, model: nn.Module, optimizer: Optimizer, average: WeightAverage | None = None) -> None:
        """Put weights, optimizer and the average of the weights back as they were."""
        if average:
            average.model.load_state_dict(load((self.path / AVERAGE).read_bytes()))
            average.updates = self.state["average_updates"]
        model.load_state_dict(load((self.path / "model.safetensors").read_bytes()))
        _restore_optimizer(optimizer, load((self.path / "optimizer.safetensors").read_bytes()))


def save(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    state: Mapping[str, Any],
    average: WeightAverage | None = None,
) -> Path:
    """Write the checkpoint of `step`, and keep it and the one before; any of a later step was damaged."""
    if average:
        state = {**state, "average_updates": average.updates}
    contents = {
        "model.safetensors": dump_tensors(model.state_dict()),
        "optimizer.safetensors": dump_tensors(_optimizer_tensors(optimizer)),
        "state.json": json.dumps({"step": step, **state}, allow_nan=False).encode(),
    }
    if average:
        contents[AVERAGE] = dump_tensors(average.model.state_dict())
    path = directory / f"step-{step:09d}"
    with files.new_directory(path) as temporary:
        for name, data in contents.items():
            (temporary / name).write_bytes(data)
        files.write_json(temporary / DIGESTS, {name: files.sha256(temporary / name) for name in contents})
    kept = [other for other in _paths(directory) if other <= path][-KEEP:]
    for other in set(_paths(directory)) - set(kept):
        shutil.rmtree(other)
    return path


def latest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint that is complete and undamaged; a damaged one is passed over with a warning."""
    for path in reversed(_paths(directory)):
        try:
            digests = files.read_json(path / DIGESTS)
            damaged = [name for name, digest in digests.items() if files.sha256(path / name) != digest]
            state = files.read_json(path / "state.json")
        except (OSError, ValueError) as error:
            damaged = [str(error)]
        if not damaged:
            return Checkpoint(path, state)
        logging.getLogger(__name__).warning("%s: damaged (%s); going back to the one before", path, damaged[0])
    return None


def _paths(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*"))


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def _restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
