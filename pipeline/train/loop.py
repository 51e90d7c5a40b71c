"""The training loop. One function, which runs in this process, as a Ray Train worker, and inside a Tune trial."""

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from pipeline.data.loader import Loader, Split
from pipeline.errors import UserError
from pipeline.train import checkpoints
from pipeline.train.run import TrainRun
from pipeline.train.tracking import MetricLog
from vae_core import distributed
from vae_core.averaging import WeightAverage
from vae_core.batch import Batch
from vae_core.config import DataSpec
from vae_core.metrics.means import Means
from vae_core.models import Model, build_model
from vae_core.noise import Noise
from vae_core.schedules import value_at
from vae_core.training import Forward, Joined, Step, compiled_forward, eval_step, forward, make_optimizer, train_step

VALIDATION_BATCH = 512
LOG_EVERY_STEPS = 100
SAMPLES_NAMED = 5

OnEpoch: TypeAlias = Callable[[int, dict[str, float]], None]


def train(
    run: TrainRun,
    directory: Path,
    *,
    on_epoch: OnEpoch,
    checkpoint_every_steps: int,
    device: torch.device | None = None,
    epochs: int | None = None,
) -> None:
    """Train `run` to the end, or to `epochs`, resuming from the newest checkpoint in `directory`.

    Every rank calls it. `on_epoch(epoch, validation figures)` is called on every rank after each epoch, once its
    checkpoint is on disk, and for the epochs that an earlier attempt finished, before training goes on.

    Raises:
        UserError: the shards are damaged, the model does not fit the data, or the run diverged.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loop = _Loop(run, directory, device, checkpoint_every_steps)
    for epoch, figures in enumerate(loop.resume()):
        on_epoch(epoch, figures)
    while loop.epochs_done < (epochs or run.train.epochs):
        epoch = loop.epochs_done
        on_epoch(epoch, loop.epoch(epoch))


class _Loop:
    """The state of one rank."""

    def __init__(self, run: TrainRun, directory: Path, device: torch.device, checkpoint_every_steps: int) -> None:
        self.run, self.config, self.device = run, run.train, device
        self.checkpoint_every_steps = checkpoint_every_steps
        self.checkpoints = directory / "checkpoints"
        self.log = MetricLog(directory)
        self.loader = _loader(run.open("train"), run).on(device, run.reading.device_cache)
        self.validation = _loader(run.open("val"), run).on(device, run.reading.device_cache)
        self.total_steps = run.train.epochs * self.loader.steps_per_epoch
        self.core = build(run, self.loader.split.spec).to(device)
        self.average = WeightAverage(self.core, run.train.ema_decay) if run.train.ema_decay else None
        self.optimizer: Optimizer = make_optimizer(self.core, learning_rate=1.0)  # each step sets its own
        self.model: nn.Module = self.core
        self.forward: Forward = forward
        if run.train.compile != "off":
            self.forward = compiled_forward(cuda_graphs=run.train.compile == "cuda_graphs")
        self.means = Means()
        self.step = self.skipped = 0

    @property
    def epochs_done(self) -> int:
        return self.step // self.loader.steps_per_epoch

    def resume(self) -> list[dict[str, float]]:
        """Restore the newest checkpoint, the same one on every rank. Returns the figures of the epochs it ends."""
        found = checkpoints.latest(self.checkpoints)
        step = distributed.from_rank_zero(found.state["step"] if found else 0)
        if step > 0:
            if found is None or found.state["step"] != step:
                raise UserError(f"{self.checkpoints}: rank 0 sees a checkpoint of step {step}, another rank does not; "
                                "compute.storage must be on storage that every node shares")  # fmt: skip
            found.restore(self.core, self.optimizer, self.average)
            self.skipped = found.state["skipped"]
            self.loader.load_state_dict(found.state["loader"])
            if distributed.rank() == 0:
                self.means.load_state_dict(found.state["means"])
        self.step = step
        if distributed.rank() == 0:
            self.log.rewind(step)
        distributed.barrier()
        if distributed.world_size() > 1 and self.config.compile != "off":
            self.model, self.forward = Joined(self.core, self.forward), Joined.call
        self.model = distributed.data_parallel(self.model, self.device)
        return self.log.epochs()

    def epoch(self, epoch: int) -> dict[str, float]:
        """Finish an epoch from where the run stands, validate, write a checkpoint."""
        steps = self.loader.steps_per_epoch
        self.model.train()
        with closing(self.loader.epoch(epoch, first_step=self.step - epoch * steps)) as batches:
            for batch in batches:
                self._train_step(epoch, batch)
                if self.step % steps and self.step % LOG_EVERY_STEPS == 0:
                    self._write(epoch, "train", self.means.compute())
                if self.step % steps and self.step % self.checkpoint_every_steps == 0:
                    self._save()
        self._write(epoch, "train", self.means.compute())
        judged = self.average.model if self.average else self.core
        figures = evaluate(judged, self.validation, seed=self.config.seed, device=self.device)
        self._write(epoch, "val", figures)
        self.means = Means()
        self._save()
        return figures

    def _train_step(self, epoch: int, batch: Batch) -> None:
        progress = self.step / self.total_steps
        done = train_step(
            self.model,
            batch,
            self.optimizer,
            noise=Noise.of(batch, seed=self.config.seed, scope="train", step=self.step),
            learning_rate=value_at(self.config.learning_rate, progress),
            max_grad_norm=self.config.max_grad_norm,
            progress=progress,
            precision=self.config.precision,
            forward=self.forward,
        )
        if done.skipped:
            self._skip(epoch, batch, done)
        else:
            self.means.add(done.terms.parts, batch.weight)
            if self.average:
                self.average.update(self.core)
        self.step += 1

    def _skip(self, epoch: int, batch: Batch, done: Step) -> None:
        """Count a step that changed nothing; past the limit, say which samples it was. Every rank calls it alike."""
        self.skipped += 1
        if self.skipped <= self.config.max_skipped_steps:
            return
        bad = batch.position[~torch.isfinite(done.terms.loss) & (batch.weight > 0)][:SAMPLES_NAMED]
        of_all = distributed.all_gather_rows(F.pad(bad, (0, SAMPLES_NAMED - len(bad)), value=-1))
        places = of_all[of_all >= 0].sort().values[:SAMPLES_NAMED].cpu().numpy()
        named = self.loader.ids(epoch, self.step - epoch * self.loader.steps_per_epoch, places)
        samples = f"; the loss of sample {', '.join(named)} is not finite" if named else "; every loss is finite"
        raise UserError(
            f"step {self.step + 1}: loss or gradient not finite, {self.skipped} steps skipped (train.max_skipped_steps "
            f"in params.yaml allows {self.config.max_skipped_steps}){samples}; lower train.learning_rate or "
            "train.max_grad_norm, or look at these samples"
        )

    def _write(self, epoch: int, split: str, values: dict[str, float]) -> None:
        """Add a row of figures, which are the same on every rank.

        Raises:
            UserError: one of them is not finite, because the run diverged.
        """
        wild = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if wild:
            raise UserError(
                f"step {self.step}: {split}: {', '.join(wild)}, {self.skipped} steps skipped; lower "
                "train.learning_rate or train.max_grad_norm in params.yaml"
            )
        if distributed.rank() == 0:
            samples = epoch * len(self.loader.split) + min(
                (self.step - epoch * self.loader.steps_per_epoch) * self.config.global_batch_size,
                len(self.loader.split),
            )
            if split == "train" and self.skipped:
                values = {**values, "skipped_steps": self.skipped}
            self.log.write(step=self.step, epoch=epoch, samples=samples, split=split, values=values)

    def _save(self) -> None:
        means = self.means.state_dict()
        if distributed.rank() == 0:
            state = {"loader": self.loader.state_dict(), "means": means, "skipped": self.skipped}
            checkpoints.save(self.checkpoints, self.step, self.core, self.optimizer, state, self.average)
        distributed.barrier()


def build(run: TrainRun, data: DataSpec) -> Model:
    """The run's model with its initial weights.

    Raises:
        UserError: the model does not fit the data.
    """
    try:
        return build_model(run.model, data, seed=run.train.seed)
    except ValueError as error:
        raise UserError(f"params.yaml: models: {error}") from None


def evaluate(model: Model, loader: Loader, *, seed: int, device: torch.device) -> dict[str, float]:
    """The parts of the objective, averaged over the loader's whole split and all ranks."""
    means = Means()
    model.eval()
    for step, batch in enumerate(loader.sequential(VALIDATION_BATCH)):
        batch = batch.to(device)
        noise = Noise.of(batch, seed=seed, scope=loader.split.name, step=step)
        means.add(eval_step(model, batch, noise), batch.weight)
    return means.compute()


def _loader(split: Split, run: TrainRun) -> Loader:
    return Loader(
        split,
        seed=run.train.seed,
        window_shards=run.train.window_shards,
        global_batch_size=run.train.global_batch_size,
        rank=distributed.rank(),
        world=distributed.world_size(),
        lanes=run.train.lanes,
    )
