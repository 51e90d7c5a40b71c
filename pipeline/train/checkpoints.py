"""Checkpoints of a run: a file each, complete or absent, named by its content. No pickle."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as dump
from torch import OutOfMemoryError, Tensor, nn
from torch.optim import Optimizer

from pipeline.errors import UserError
from pipeline.progress import say
from pipeline.train.folders import Folder, Place, open_folder
from vae_core.averaging import WeightAverage
from vae_core.serialize import dump_tensors

KEEP = 2  # the newest, and the one before in case the newest was damaged
BEST_STEP = "best_step"
NAME = re.compile(r"step-(\d{9,})-([0-9a-f]{16})\.safetensors")
MODEL, OPTIMIZER, AVERAGE = "model.", "optimizer.", "average."


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint holds, copied, so that it can be written while training goes on."""

    step: int
    tensors: dict[str, Tensor] = field(repr=False)
    state: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its content is what its name says."""

    name: str
    state: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)

    @property
    def weights(self) -> bytes:
        """The weights that the run is judged by, as safetensors: their average where it keeps one."""
        return dump_tensors(self._part(AVERAGE) or self._part(MODEL))

    def restore(self, model: nn.Module, optimizer: Optimizer, average: WeightAverage | None = None) -> None:
        """Put weights, optimizer and the average of the weights back as they were."""
        if average:
            average.model.load_state_dict(self._part(AVERAGE))
            average.updates = self.state["average_updates"]
        model.load_state_dict(self._part(MODEL))
        _restore_optimizer(optimizer, self._part(OPTIMIZER))

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): self.tensors[name] for name in self.tensors if name.startswith(prefix)}


def save(
    folder: Place,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    state: Mapping[str, Any],
    average: WeightAverage | None = None,
) -> None:
    """Write the checkpoint of `step` at once; `write` says what is kept.

    Raises:
        StorageFailed: the disk is full or the store does not answer; the earlier checkpoints are as they were.
    """
    write(folder, snapshot(step, model, optimizer, state, average))


def snapshot(
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    state: Mapping[str, Any],
    average: WeightAverage | None = None,
) -> Snapshot:
    """A copy, on the CPU, of all that `step` left.

    Args:
        state: JSON. `best_step`, where it has one, is the step of the checkpoint with the best validation figure so
            far, this one included: that one is kept too.
    """
    if average:
        state = {**state, "average_updates": average.updates}
    tensors = {
        **_named(MODEL, model.state_dict()),
        **_named(OPTIMIZER, _optimizer_tensors(optimizer)),
        **_named(AVERAGE, average.model.state_dict() if average else {}),
    }
    return Snapshot(step, tensors, {"step": step, **state})


def write(folder: Place, snapshot: Snapshot) -> None:
    """Write a checkpoint, and keep it, the one before and the best; any of a later step was damaged.

    Args:
        folder: that of the checkpoints. Its one writer calls this.

    Raises:
        StorageFailed: the disk is full or the store does not answer; the earlier checkpoints are as they were.
    """
    folder = open_folder(folder)
    data = dump(snapshot.tensors, {"state": json.dumps(snapshot.state, allow_nan=False)})
    name = f"step-{snapshot.step:09d}-{_digest(data)}.safetensors"
    folder.write(name, data)
    others = [other for other in _newest_first(folder) if step_of(other) < snapshot.step]
    kept = {name, *others[: KEEP - 1], *_of_step(others, snapshot.state.get(BEST_STEP))}
    folder.remove(*(other for other in _newest_first(folder) if other not in kept))


def latest(folder: Place) -> Checkpoint | None:
    """The newest checkpoint that is undamaged; a damaged one is passed over with a warning.

    Raises:
        StorageFailed: the disk or the store cannot be read.
    """
    folder = open_folder(folder)
    return _first_whole(folder, _newest_first(folder))


def best(folder: Place, newest: Checkpoint) -> Checkpoint | None:
    """That with the best validation figure, where `newest` names it and it is undamaged.

    Raises:
        StorageFailed: the disk or the store cannot be read.
    """
    step = newest.state.get(BEST_STEP)
    if step == newest.state["step"]:
        return newest
    folder = open_folder(folder)
    return _first_whole(folder, _of_step(_newest_first(folder), step))


@contextmanager
def fitting(folder: Folder, found: Checkpoint) -> Iterator[None]:
    """Say which checkpoint does not fit the run that is restored from it: it was put there.

    Raises:
        UserError: what is restored lacks something, or has it in another shape.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{folder.location}/{found.name}: not a checkpoint of this run ({reason}); remove the run with "
            "`python -m pipeline runs rm`, and train it anew"
        ) from None


def step_of(name: str) -> int:
    """The step of a checkpoint, from the name of its file; -1: the file is none."""
    match = NAME.fullmatch(name.rpartition("/")[2])
    return int(match[1]) if match else -1


def is_whole(name: str, data: bytes) -> bool:
    """Whether the content of a checkpoint's file is what its name says."""
    match = NAME.fullmatch(name.rpartition("/")[2])
    return match is not None and match[2] == _digest(data)


def _first_whole(folder: Folder, names: Iterable[str]) -> Checkpoint | None:
    for name in names:
        try:
            data = folder.read(name)
        except FileNotFoundError:  # the writer has removed it meanwhile
            continue
        if is_whole(name, data):
            with suppress(ValueError, LookupError, TypeError, RecursionError, SafetensorError):  # it is another file
                state = _state(data)
                if state["step"] == step_of(name):
                    return Checkpoint(name, state, load(data))
        say(f"{folder.location}/{name}: damaged; going back to the one before")
    return None


def _newest_first(folder: Folder) -> list[str]:
    return sorted((name for name in folder.names("step-") if NAME.fullmatch(name)), key=_order, reverse=True)


def _order(name: str) -> tuple[int, str]:
    return step_of(name), name


def _of_step(names: Iterable[str], step: int | None) -> list[str]:
    return [name for name in names if step_of(name) == step]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _state(data: bytes) -> dict[str, Any]:
    """The state in the header of safetensors: its length in 8 bytes, then JSON."""
    length = int.from_bytes(data[:8], "little")
    state: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
    return state


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def _restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        if value.shape not in ((), shapes[int(index)]):  # torch would notice in the next step
            raise ValueError(f"optimizer state {key} is {list(value.shape)}, its parameter {list(shapes[int(index)])}")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
