"""Train the prior over codes, in this process. A run that was broken off goes on, and ends with the same bytes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from pipeline.closure import code_fingerprint
from pipeline.config import PriorConfig, fingerprint
from pipeline.errors import Diverged, UserError
from pipeline.evaluate.models import digest
from pipeline.prior.codes import Coded
from pipeline.progress import say, track
from pipeline.train import checkpoints
from pipeline.train.folders import Folder, Place, open_folder
from vae_core.metrics.means import Means
from vae_core.models import CodeModel
from vae_core.noise import Noise
from vae_core.priors import CodePrior, build_prior, prior_step
from vae_core.schedules import value_at
from vae_core.serialize import dump_tensors
from vae_core.training import make_optimizer, with_dropout

VALIDATION_BATCH = 500
MAX_SKIPPED_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class PriorRun:
    """What is trained, on the codes of which model and data. Equal runs give equal results.

    Attributes:
        model: digest of the model whose codes are learned.
        data: digest of the shards.
        code: fingerprint of the files that this module imports.
        condition_dropout: share of training rows that hide the condition, as in the model.
    """

    config: PriorConfig
    grids: tuple[tuple[int, ...], ...]
    num_codes: int
    condition_dim: int
    condition_dropout: float
    model: str
    data: str
    code: str

    @classmethod
    def of(cls, config: PriorConfig, model: CodeModel, directory: Path, data: str) -> "PriorRun":
        """The prior of the model in `directory` on the shards with digest `data`."""
        return cls(
            config=config,
            grids=model.grids,
            num_codes=model.num_codes,
            condition_dim=model.condition_dim,
            condition_dropout=model.config.condition_dropout,
            model=digest(directory),
            data=data,
            code=code_fingerprint(__name__),
        )

    @property
    def name(self) -> str:
        """The end of its folder's name, after the family."""
        return f"prior-{fingerprint(self)}"

    @property
    def lineage(self) -> dict[str, str]:
        return {"data": self.data, "model": self.model, "params": fingerprint(self.config), "code": self.code}

    def build(self) -> CodePrior:
        """The prior with its initial weights."""
        return build_prior(self.config.network, self.grids, self.num_codes, self.condition_dim, seed=self.config.seed)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run.

    Attributes:
        weights: safetensors of the epoch with the lowest validation cost, the first of equals.
        best_epoch: that epoch, from 0.
        epochs: {split: {figure: value}} of each epoch, in nats an image.
    """

    weights: bytes
    best_epoch: int
    epochs: list[dict[str, dict[str, float]]]


def train_prior(
    run: PriorRun,
    train: Coded,
    val: Coded,
    folder: Place,
    *,
    checkpoint_every_steps: int,
    what: str,
    device: torch.device | None = None,
) -> Trained:
    """Train `run` to the end, resuming from the newest checkpoint in `folder`.

    Raises:
        Diverged: more steps than allowed had a loss or gradient that was not finite.
        StorageFailed: a checkpoint could not be written.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loop = _Loop(run, train, val, open_folder(folder), device)
    loop.resume()
    left = range(loop.step, loop.total_steps)
    for _ in track(left, total=len(left), what=what, unit="steps"):
        loop.advance()
        if loop.step % loop.steps_per_epoch == 0:
            loop.end_epoch()
        elif loop.step % checkpoint_every_steps == 0:
            loop.save()
    done = outcome(run, folder)
    if done is None:
        raise UserError(
            f"{open_folder(folder).location}: damaged while the prior was trained; run the same command again"
        )
    return done


def outcome(run: PriorRun, folder: Place) -> Trained | None:
    """What a run that has ended left in its folder; None where that is damaged or gone."""
    place = open_folder(folder).sub("checkpoints")
    newest = checkpoints.latest(place)
    if newest is None or len(newest.state["epochs"]) < run.config.epochs:
        return None
    best = checkpoints.best(place, newest)
    if best is None:
        return None
    prior = run.build()
    with checkpoints.fitting(place, best):
        best.restore(prior, make_optimizer(prior, learning_rate=1.0))
    epochs = newest.state["epochs"]
    return Trained(weights=dump_tensors(prior.state_dict()), best_epoch=_best(epochs), epochs=epochs)


class _Loop:
    """The state of a run."""

    def __init__(self, run: PriorRun, train: Coded, val: Coded, folder: Folder, device: torch.device) -> None:
        self.run, self.config, self.device = run, run.config, device
        self.train, self.val, self.checkpoints = train, val, folder.sub("checkpoints")
        self.steps_per_epoch = math.ceil(len(train) / run.config.global_batch_size)
        self.total_steps = run.config.epochs * self.steps_per_epoch
        self.prior = run.build().to(device)
        self.optimizer = make_optimizer(self.prior, learning_rate=1.0)  # each step sets its own
        self.means = Means()
        self.epochs: list[dict[str, dict[str, float]]] = []
        self.step, self.skipped = 0, torch.zeros((), dtype=torch.int64, device=device)
        self._order: tuple[int, Tensor] | None = None

    def resume(self) -> None:
        """Restore the newest checkpoint, where that of the best epoch is there too."""
        found = checkpoints.latest(self.checkpoints)
        if found is None:
            return
        if found.state["epochs"] and checkpoints.best(self.checkpoints, found) is None:
            say(f"{self.checkpoints.location}: that of the best epoch is damaged or gone; the prior is trained anew")
            self.checkpoints.clear()
            return
        with checkpoints.fitting(self.checkpoints, found):
            found.restore(self.prior, self.optimizer)
            self.step, self.epochs = found.state["step"], found.state["epochs"]
            self.skipped.fill_(found.state["skipped"])
            self.means.load_state_dict(found.state["means"])

    def advance(self) -> None:
        """One step on the next rows of the epoch's order."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        size = self.config.global_batch_size
        rows = self._rows_of(epoch)[place * size : (place + 1) * size]
        codes, condition = self.train.rows(rows, self.device)
        noise = self._noise("train", self.step, len(rows))
        weight = torch.ones(len(rows), device=self.device)
        done = prior_step(
            self.prior,
            codes,
            with_dropout(condition, self.run.condition_dropout, noise),
            self.optimizer,
            noise=noise,
            row_weight=weight,
            learning_rate=value_at(self.config.learning_rate, self.step / self.total_steps),
            max_grad_norm=self.config.max_grad_norm,
        )
        self.step += 1
        self.skipped += done.skipped
        self.means.add(_figures(done.nll), weight * ~done.skipped)

    def end_epoch(self) -> None:
        """Validate and write a checkpoint."""
        self._check_skipped()
        figures = self._validate()
        if not math.isfinite(figures["nll_nats"]):
            self._diverged("the validation cost is not finite")
        self.epochs.append({"train": self.means.compute(), "val": figures})
        self.means = Means()
        self.save()

    def save(self) -> None:
        skipped = self._check_skipped()
        state = {"means": self.means.state_dict(), "epochs": self.epochs, "skipped": skipped}
        if self.epochs:
            state[checkpoints.BEST_STEP] = (_best(self.epochs) + 1) * self.steps_per_epoch
        checkpoints.save(self.checkpoints, self.step, self.prior, self.optimizer, state)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        means = Means()
        for rows in torch.arange(len(self.val)).split(VALIDATION_BATCH):
            nll = self.prior(*self.val.rows(rows, self.device))
            means.add(_figures(nll), torch.ones(len(rows), device=self.device))
        return means.compute()

    def _rows_of(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            generator = Noise(seed=self.config.seed, scope="prior", step=epoch, position=torch.empty(0), rows=0)
            self._order = epoch, torch.randperm(len(self.train), generator=generator.generator("order"))
        return self._order[1]

    def _noise(self, scope: str, step: int, rows: int) -> Noise:
        position = torch.arange(rows, device=self.device)
        return Noise(seed=self.config.seed, scope=f"prior/{scope}", step=step, position=position, rows=rows)

    def _check_skipped(self) -> int:
        """How many steps were skipped: to know that is to wait for the device."""
        skipped = int(self.skipped)
        if skipped > MAX_SKIPPED_STEPS:
            self._diverged(f"loss or gradient not finite, {skipped} steps skipped")
        return skipped

    def _diverged(self, how: str) -> NoReturn:
        raise Diverged(
            f"prior: step {self.step}: {how}; lower prior.learning_rate or prior.max_grad_norm in params.yaml"
        )


def metrics(run: PriorRun, trained: Trained, uniform_nats: float) -> dict[str, Any]:
    """What a run leaves as its figures: those of the best epoch, and the cost of each epoch."""
    best = trained.epochs[trained.best_epoch]
    costs = [{split: figures.get("nll_nats") for split, figures in epoch.items()} for epoch in trained.epochs]
    return {
        "kind": run.config.network.kind,
        "epochs": len(trained.epochs),
        "best_epoch": trained.best_epoch + 1,
        "uniform_nats": uniform_nats,
        **best,
        "nll_nats": costs,
    }


def _best(epochs: Sequence[Mapping[str, Mapping[str, float]]]) -> int:
    costs = [epoch["val"]["nll_nats"] for epoch in epochs]
    return costs.index(min(costs))


def _figures(nll: Tensor) -> dict[str, Tensor]:
    """[B] each, from [B, levels]; level 1 is the top one."""
    levels = {f"level_{i + 1}_nats": level for i, level in enumerate(nll.unbind(1))}
    return {"nll_nats": nll.sum(1), **levels}
