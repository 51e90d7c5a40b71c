"""The training loop. One function, which runs in this process, as a Ray Train worker, and inside a Tune trial."""

import math
from collections.abc import Callable
from contextlib import closing
from typing import TypeAlias

import torch

from pipeline.data.loader import Loader, Split
from pipeline.errors import Diverged, UserError
from pipeline.train import checkpoints
from pipeline.train.folders import Folder, Place, open_folder
from pipeline.train.learner import Learner
from pipeline.train.leaving import Watch
from pipeline.train.run import TrainRun
from pipeline.train.saving import Saver
from pipeline.train.skips import Skips
from pipeline.train.speed import Speed
from pipeline.train.tracking import MetricLog
from vae_core import distributed
from vae_core.batch import Batch
from vae_core.config import DataSpec
from vae_core.metrics.means import Means
from vae_core.metrics.primary import primary
from vae_core.models import Model, build_model
from vae_core.noise import Noise
from vae_core.training import check_divisible, eval_step

VALIDATION_BATCH = 512
LOG_EVERY_STEPS = 100

OnEpoch: TypeAlias = Callable[[int, dict[str, float]], None]


def train(
    run: TrainRun,
    folder: Place,
    *,
    on_epoch: OnEpoch,
    checkpoint_every_steps: int,
    device: torch.device | None = None,
    epochs: int | None = None,
    leaving: Callable[[], bool] | None = None,
    max_rows: int | None = None,
) -> None:
    """Train `run` to the end, or to `epochs`, resuming from the newest checkpoint in `folder`.

    Every rank calls it. `on_epoch(epoch, validation figures)` is called on every rank after each epoch, and for the
    epochs that an earlier attempt finished before training goes on. Checkpoints are written meanwhile; the last one is
    on disk before the last call.

    Args:
        leaving: whether this rank's node is about to go; asked on every rank at the same steps, every few seconds.
            Where one says so, a checkpoint is written at once.
        max_rows: of one forward pass of this rank; of more, the gradients are added up. Changes rounding alone.

    Raises:
        Diverged: more steps than allowed, or a figure, were not finite.
        StorageFailed: a checkpoint or a figure could not be written.
        UserError: the shards are damaged, or the model does not fit the data or `max_rows`.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loop = _Loop(run, open_folder(folder), device, checkpoint_every_steps, max_rows)
    last = epochs or run.train.epochs
    with loop.saver:
        for epoch, figures in enumerate(loop.resume()):
            on_epoch(epoch, figures)
        watch = Watch(leaving, loop.step)
        if loop.epochs_done < last:
            loop.rehearse()
        while loop.epochs_done < last:
            epoch = loop.epochs_done
            figures = loop.epoch(epoch, watch, is_last=epoch + 1 == last)
            on_epoch(epoch, figures)


class _Loop:
    """The state of one rank."""

    def __init__(
        self, run: TrainRun, folder: Folder, device: torch.device, checkpoint_every_steps: int, max_rows: int | None
    ) -> None:
        self.run, self.config, self.device, self.folder = run, run.train, device, folder
        self.checkpoint_every_steps = checkpoint_every_steps
        self.checkpoints = folder.sub("checkpoints")
        self.log, self.saver, self.speed = MetricLog(folder), Saver(self._to_disk), Speed(device)
        self.loader = _loader(run.open("train"), run).on(device, run.reading.device_cache)
        self.validation = _loader(run.open("val"), run).on(device, run.reading.device_cache)
        self.total_steps = run.train.epochs * self.loader.steps_per_epoch
        self.learner = Learner(build(run, self.loader.split.spec), run.train, device, max_rows)
        self.means, self.skips, self.step = Means(), Skips(), 0
        self.figures: list[dict[str, float]] = []  # of each finished epoch, on the validation split
        _check_max_rows(run, max_rows)

    @property
    def epochs_done(self) -> int:
        return self.step // self.loader.steps_per_epoch

    def resume(self) -> list[dict[str, float]]:
        """Restore the newest checkpoint, the same one on every rank. Returns the figures of the epochs it ends."""
        found = checkpoints.latest(self.checkpoints)
        step = distributed.from_rank_zero(found.state["step"] if found else 0)
        if step > 0:
            if found is None or found.state["step"] != step:
                raise UserError(f"{self.checkpoints.location}: rank 0 sees a checkpoint of step {step}, another rank "
                                "does not; compute.storage must be on storage that every node shares")  # fmt: skip
            self._restore(found)
        self.step = step
        if distributed.rank() == 0:
            self.log.rewind(step)
        distributed.barrier()
        self.learner.wrap()
        self.figures = self.log.epochs()
        if len(self.figures) != self.epochs_done:
            raise UserError(
                f"{self.folder.location}: the checkpoint ends epoch {self.epochs_done}, the log {len(self.figures)}; "
                "run `python -m pipeline runs repair`, then the same command again"
            )
        return list(self.figures)

    def rehearse(self) -> None:
        """Two ranks add their gradients up in one order only."""
        if distributed.world_size() > 2:
            self.learner.core.train()
            with closing(self.loader.epoch(self.epochs_done)) as batches:
                self.learner.rehearse(next(batches))

    def _restore(self, found: checkpoints.Checkpoint) -> None:
        with checkpoints.fitting(self.checkpoints, found):
            self.learner.restore(found)
            self.skips = Skips(found.state["skipped"])
            self.loader.load_state_dict(found.state["loader"])
            if distributed.rank() == 0:
                self.means.load_state_dict(found.state["means"])

    def epoch(self, epoch: int, watch: Watch, *, is_last: bool) -> dict[str, float]:
        """Finish an epoch from where the run stands, validate, write a checkpoint; wait for it if it `is_last`."""
        steps, first = self.loader.steps_per_epoch, self._samples(epoch)
        self.learner.core.train()
        with closing(self.loader.epoch(epoch, first_step=self.step - epoch * steps)) as batches:
            for batch in self.speed.waiting(batches):
                self._learn(batch)
                if self.step % steps:
                    self._between_steps(epoch, watch)
        self._log_training(epoch)
        figures = self._validate(epoch)
        self.means = Means()
        self._save(at_once=is_last)
        if distributed.rank() == 0:
            self.speed.write(self.folder, epoch=epoch, step=self.step, images=self._samples(epoch) - first)
        return figures

    def _learn(self, batch: Batch) -> None:
        done = self.learner.learn(batch, step=self.step, total_steps=self.total_steps)
        self.means.add(done.terms.parts, batch.weight * ~done.skipped)
        self.step += 1
        self.skips.add(self.step, batch, done)

    def _between_steps(self, epoch: int, watch: Watch) -> None:
        """Log, and write a checkpoint, where it is time: only here the host waits for the device."""
        if self.step % LOG_EVERY_STEPS == 0:
            self._log_training(epoch)
        leaving = watch.is_leaving(self.step)
        if leaving or self.step % self.checkpoint_every_steps == 0:
            self._save(at_once=leaving)

    def _log_training(self, epoch: int) -> None:
        self.skips.check(self.config.max_skipped_steps, self.loader)
        skipped = {"skipped_steps": self.skips.count} if self.skips.count else {}
        self._write(epoch, "train", {**self.means.compute(), **skipped})

    def _validate(self, epoch: int) -> dict[str, float]:
        with self.speed.share("evaluation"):
            figures = evaluate(self.learner.judged, self.validation, seed=self.config.seed, device=self.device)
        self._write(epoch, "val", figures)
        self.figures.append(figures)
        return figures

    def _write(self, epoch: int, split: str, values: dict[str, float]) -> None:
        """Add a row of figures, which are the same on every rank.

        Raises:
            Diverged: one of them is not finite.
        """
        wild = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if wild:
            raise Diverged(
                f"step {self.step}: {split}: {', '.join(wild)}, {self.skips.count} steps skipped; lower "
                "train.learning_rate or train.max_grad_norm in params.yaml"
            )
        if distributed.rank() == 0:
            self.log.write(step=self.step, epoch=epoch, samples=self._samples(epoch), split=split, values=values)

    def _samples(self, epoch: int) -> int:
        """Rows of the data that the run has seen, in its given epoch."""
        rows, steps = len(self.loader.split), self.step - epoch * self.loader.steps_per_epoch
        return epoch * rows + min(steps * self.config.global_batch_size, rows)

    def _save(self, *, at_once: bool) -> None:
        """Have a checkpoint written; `at_once`: before any rank goes on."""
        self.skips.check(self.config.max_skipped_steps, self.loader)
        with self.speed.share("checkpoint"):
            means = self.means.state_dict()
            if distributed.rank() == 0:
                state = {"loader": self.loader.state_dict(), "means": means, "skipped": self.skips.count}
                if self.figures:
                    state[checkpoints.BEST_STEP] = self._best_step()
                self.saver.save(self.learner.snapshot(self.step, state))
                if at_once:
                    self.saver.wait()
            if at_once:
                distributed.barrier()

    def _best_step(self) -> int:
        costs = [figures[primary(figures)] for figures in self.figures]
        return (costs.index(min(costs)) + 1) * self.loader.steps_per_epoch

    def _to_disk(self, snapshot: checkpoints.Snapshot) -> None:
        self.log.flush()
        checkpoints.write(self.checkpoints, snapshot)


def _check_max_rows(run: TrainRun, max_rows: int | None) -> None:
    """Say at once that the rows of a rank cannot pass in parts.

    Raises:
        UserError: it has more than `max_rows`, and the objective looks at all of them together.
    """
    if max_rows is None or -(-run.train.global_batch_size // distributed.world_size()) <= max_rows:
        return
    try:
        check_divisible(run.model)
    except ValueError as error:
        raise UserError(
            f"params.yaml: models: {error}; set compute.max_rows to null, or train with more workers"
        ) from None


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
