"""The loop: each step's rows by (seed, step) alone, checkpoints in safetensors; so a run goes on where it stopped."""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Adam

from bench.reproduction.data import Rows
from bench.reproduction.row import Row
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


@dataclass(slots=True)
class Progress:
    """What a checkpoint holds besides tensors, over all parts of a run.

    Attributes:
        steps: done; `skipped` of them were not finite.
        seconds: of the steps but the first few of each part, which compile: those are in `start_seconds`.
        cpu_seconds: of all threads, starts included; on a machine that is shared, far fewer than the seconds.
    """

    steps: int = 0
    skipped: int = 0
    seconds: float = 0.0
    start_seconds: float = 0.0
    cpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Trained:
    """A model after its last step, and what the way there took."""

    model: Model
    progress: Progress


class Clock:
    """Adds the seconds since it was last read, of the device's work too."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def add_to(self, progress: Progress, *, start: bool = False) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        wall, cpu = time.perf_counter(), time.process_time()
        if start:
            progress.start_seconds += wall - self.wall
        else:
            progress.seconds += wall - self.wall
        progress.cpu_seconds += cpu - self.cpu
        self.wall, self.cpu = wall, cpu


def fit(row: Row, rows: Rows, *, fraction: float, seed: int, how: How) -> Trained:
    """Train the model of a row on `rows` for this fraction of its schedule.

    Raises:
        OutOfTimeError: `how.stop_at` came first; the same call goes on from there.
    """
    model = initial(row, rows, seed)
    optimizer = Adam(model.parameters(), lr=1e-3, eps=row.adam_epsilon, fused=True)
    steps, rate, size = row.steps_of(fraction), row.rate(fraction), row.batch_of(fraction)
    path = how.folder / f"{row.name}-{seed}-{_digest(row, rows, fraction, how)}.safetensors" if how.folder else None
    progress = _resume(path, model, optimizer)
    step_forward = _forward(how)
    position, weight = torch.arange(size, device=rows.device), torch.ones(size, device=rows.device)
    model.train()
    skipped = torch.full((), progress.skipped, device=rows.device)
    clock, saved, warm = Clock(rows.device), time.monotonic(), progress.steps + WARM_UP_STEPS
    for step, chosen in order(len(rows), size, range(progress.steps, steps), seed=seed, device=rows.device):
        if step == warm:
            clock.add_to(progress, start=True)
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
        progress.steps, skipped = step + 1, skipped + took.skipped
        late = time.monotonic() > how.stop_at
        if late or progress.steps == steps or time.monotonic() - saved > how.checkpoint_seconds:
            clock.add_to(progress)
            progress.skipped = int(skipped)
            _save(path, model, optimizer, progress)
            saved = time.monotonic()
        if late and progress.steps < steps:
            raise OutOfTimeError(f"{row.name}: {progress.steps:,} of {steps:,} steps done")
    return Trained(model.eval(), progress)


def _forward(how: How) -> Forward:
    return compiled_forward(cuda_graphs=how.cuda_graphs) if how.compiled else forward


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


def _digest(row: Row, rows: Rows, fraction: float, how: How) -> str:
    """Of all that decides the weights, so that no run goes on from another one's checkpoint."""
    asked = (row.model, row.batch_of(fraction), row.steps_of(fraction), row.rate(fraction), row.adam_epsilon)
    some = rows.images[:1000].cpu().numpy().tobytes()
    return hashlib.blake2b(repr((asked, row.output_bias, how.precision)).encode() + some, digest_size=6).hexdigest()


def _save(path: Path | None, model: Model, optimizer: Adam, progress: Progress) -> None:
    """Atomic: a run that is killed while it writes leaves the checkpoint before."""
    if path is None:
        return
    tensors = {f"model/{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    for at, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam/{at}/{name}": tensor for name, tensor in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"progress": json.dumps(asdict(progress))})
    os.replace(partial, path)


def _resume(path: Path | None, model: Model, optimizer: Adam) -> Progress:
    """How far the checkpoint is, with its weights and moments in `model` and `optimizer`; zeros where there is none."""
    if path is None or not path.is_file():
        return Progress()
    tensors = load_file(path, device=str(next(model.parameters()).device))
    with safetensors.safe_open(path, framework="pt") as file:
        progress = Progress(**json.loads(file.metadata()["progress"]))
    model.load_state_dict(_below("model/", tensors))
    adam = optimizer.state_dict()
    for name, tensor in _below("adam/", tensors).items():
        at, _, entry = name.partition("/")
        adam["state"].setdefault(int(at), {})[entry] = tensor
    optimizer.load_state_dict(adam)
    return progress


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
