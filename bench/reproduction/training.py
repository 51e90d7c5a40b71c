"""The loop: each step's rows by (seed, step) alone, checkpoints in safetensors; so a run goes on where it stopped."""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Adam

from bench.reproduction.data import Rows
from bench.reproduction.rows import Row
from vae_core.models import Model, build_model
from vae_core.networks import MLPDecoder
from vae_core.noise import Noise
from vae_core.schedules import value_at
from vae_core.training import Forward, Precision, compiled_forward, forward, train_step

NO_CLIPPING = math.inf
WARM_UP_STEPS = 3


class OutOfTimeError(Exception):
    """The time that was allowed is over; a checkpoint holds what was done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class How:
    """What is the user's choice, not the row's.

    Attributes:
        compiled: through torch.compile; `cuda_graphs`: and as one graph of kernels a step.
        folder: of the checkpoints; None: none.
        checkpoint_seconds: between two checkpoints.
        stop_at: time.monotonic() after which the run stops at a checkpoint.
    """

    precision: Precision = "fp32"
    compiled: bool = True
    cuda_graphs: bool = False
    folder: Path | None = None
    checkpoint_seconds: float = 60.0
    stop_at: float = math.inf


@dataclass(frozen=True, slots=True)
class Trained:
    """A model after its last step.

    Attributes:
        seconds: of the steps, over all parts of the run; `start_seconds` of the first steps, which compile, not in it.
        skipped: steps that were not finite.
    """

    model: Model
    steps: int
    seconds: float
    start_seconds: float
    skipped: int


class Clock:
    """Seconds of work, on the device too; starts anew after the steps that compile."""

    def __init__(self, device: torch.device, before: float) -> None:
        self.device, self.before, self.start = device, before, time.perf_counter()

    def seconds(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.before + time.perf_counter() - self.start


def fit(row: Row, rows: Rows, *, fraction: float, seed: int, how: How) -> Trained:
    """Train the model of a row on `rows` for this fraction of its schedule.

    Raises:
        OutOfTimeError: `how.stop_at` came first; the same call goes on from there.
    """
    model = initial(row, rows, seed)
    optimizer = Adam(model.parameters(), lr=1e-3, eps=row.adam_epsilon, fused=True)
    steps, rate = row.steps_of(fraction), row.rate(fraction)
    path = how.folder / f"{row.name}-{steps}-{seed}.safetensors" if how.folder else None
    done, before, start_seconds, skipped = _resume(path, model, optimizer)
    step_forward: Forward = compiled_forward(cuda_graphs=how.cuda_graphs) if how.compiled else forward
    position, weight = torch.arange(row.batch, device=rows.device), torch.ones(row.batch, device=rows.device)
    model.train()
    clock, saved, first = Clock(rows.device, before), time.monotonic(), done
    for step, chosen in order(len(rows), row.batch, range(done, steps), seed=seed, device=rows.device):
        if step == first + WARM_UP_STEPS:
            start_seconds += clock.seconds() - before
            clock = Clock(rows.device, before)
        batch = rows.batch(chosen, position, weight)
        took = train_step(
            model,
            batch,
            optimizer,
            noise=Noise.of(batch, seed=seed, scope="train", step=step),
            learning_rate=value_at(rate, step / steps),
            max_grad_norm=NO_CLIPPING,
            progress=step / steps,
            precision=how.precision,
            forward=step_forward,
        )
        skipped += took.skipped
        late = time.monotonic() > how.stop_at
        if path and step + 1 < steps and (late or time.monotonic() - saved > how.checkpoint_seconds):
            _save(path, model, optimizer, (step + 1, clock.seconds(), start_seconds, skipped))
            saved = time.monotonic()
        if late and step + 1 < steps:
            raise OutOfTimeError(f"{row.name}: {step + 1:,} of {steps:,} steps done")
    seconds = clock.seconds()
    if path and done < steps:
        _save(path, model, optimizer, (steps, seconds, start_seconds, skipped))
    return Trained(model.eval(), steps, seconds, start_seconds, skipped)


def initial(row: Row, rows: Rows, seed: int) -> Model:
    """The untrained model on the device of the rows, its output bias where the row wants it."""
    model = build_model(row.model, rows.spec, seed=seed)
    if row.output_bias:
        decoder = model.decoder
        assert isinstance(decoder, MLPDecoder)
        with torch.no_grad():
            # Pixels that are always black would want a logit of minus infinity; one image of white among all is less.
            edge = 0.5 / len(rows)
            decoder.out.bias.copy_(torch.logit(rows.mean().flatten().cpu().clamp(edge, 1 - edge)))
    return model.to(rows.device)


def order(count: int, batch: int, steps: range, *, seed: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Each step with its rows, int64 [batch]: permutations of all rows end to end, one an epoch, by (seed, epoch).

    Raises:
        ValueError: a batch holds more than all rows.
    """
    if batch > count:
        raise ValueError(f"batch: expected at most the {count:,} rows of the data, got {batch:,}")
    here, epoch = torch.empty(0, dtype=torch.int64, device=device), -1
    for step in steps:
        first, last = step * batch // count, (step * batch + batch - 1) // count
        if last != epoch:
            here = torch.cat([_permutation(count, each, seed, device) for each in range(first, last + 1)])
            base, epoch = first, last
        start = step * batch - base * count
        yield step, here[start : start + batch]


def _permutation(count: int, epoch: int, seed: int, device: torch.device) -> Tensor:
    noise = Noise(seed=seed, scope="order", step=epoch, position=torch.empty(0, device=device), rows=0)
    return torch.randperm(count, generator=noise.generator("rows"), device=device)


def _save(path: Path, model: Model, optimizer: Adam, done: tuple[int, float, float, int]) -> None:
    """Atomic: a run that is killed while it writes leaves the checkpoint before."""
    tensors = {f"model/{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    for at, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam/{at}/{name}": tensor for name, tensor in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"done": " ".join(map(repr, done))})
    os.replace(partial, path)


def _resume(path: Path | None, model: Model, optimizer: Adam) -> tuple[int, float, float, int]:
    """Steps done, their seconds, those of the starts, and steps skipped; zeros where there is no checkpoint."""
    if path is None or not path.is_file():
        return 0, 0.0, 0.0, 0
    device = next(model.parameters()).device
    tensors = load_file(path, device=str(device))
    with safetensors.safe_open(path, framework="pt") as file:
        done, seconds, start_seconds, skipped = file.metadata()["done"].split()
    model.load_state_dict(_below("model/", tensors))
    adam = optimizer.state_dict()
    for name, tensor in _below("adam/", tensors).items():
        at, _, entry = name.partition("/")
        adam["state"].setdefault(int(at), {})[entry] = tensor
    optimizer.load_state_dict(adam)
    return int(done), float(seconds), float(start_seconds), int(skipped)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
