"""train the prior over one family's codes, where it has codes -> models/F/prior"""

import shutil
from pathlib import Path

import torch

from pipeline import files, runtime
from pipeline.config import ComputeConfig, Params, PriorConfig
from pipeline.data.loader import open_split
from pipeline.evaluate.models import open_model
from pipeline.prior.codes import encode_split
from pipeline.prior.train import PriorRun, Trained, metrics, train_prior
from pipeline.progress import say
from pipeline.stages import MODELS, SHARDS, required
from pipeline.train.publish import METRICS
from vae_core.models import CodeModel
from vae_core.models.categorical import Categorical
from vae_core.priors import uniform_nats
from vae_core.priors.files import describe_prior
from vae_core.serialize import CONFIG, WEIGHTS

NONE = {"kind": "none", "reason": "the prior of this family is part of its model"}


def main(params: Params, family: str | None) -> None:
    runtime.end_with_dvc()
    family = required(family)
    best, out = MODELS / family / "best", MODELS / family / "prior"
    model = open_model(best)
    if isinstance(model, CodeModel) and not isinstance(model, Categorical):
        _train(model, best, out, params.prior, params.compute, family)
        return
    with files.new_directory(out) as temporary:
        files.write_json(temporary / METRICS, NONE)
    say(f"{family}: {NONE['reason']}")


def _train(model: CodeModel, best: Path, out: Path, config: PriorConfig, compute: ComputeConfig, family: str) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    splits = [open_split(SHARDS, name, compute.read) for name in ("train", "val")]
    run = PriorRun.of(config, model, best, splits[0].digest)
    directory = Path(compute.storage).resolve() / run.name
    with runtime.exclusive(directory):
        train, val = (
            encode_split(model, split, seed=config.seed, device=device, what=f"codes of {family} {split.name}")
            for split in splits
        )
        trained = train_prior(
            run, train, val, directory, checkpoint_every_steps=compute.checkpoint_every_steps, what=f"prior {family}"
        )
        publish(run, trained, out)
    shutil.rmtree(directory)
    cost, baseline = trained.epochs[trained.best_epoch]["val"]["nll_nats"], uniform_nats(run.build())
    say(f"{family}: validation codes cost {cost:.2f} nats an image (uniform {baseline:.2f}); prior: {out}")


def publish(run: PriorRun, trained: Trained, out: Path) -> None:
    """Write the best epoch's prior to `out`: weights, configuration with lineage, figures."""
    prior = run.build()
    with files.new_directory(out) as temporary:
        (temporary / WEIGHTS).write_bytes(trained.weights)
        files.write_json(temporary / CONFIG, {**describe_prior(prior), "lineage": run.lineage})
        files.write_json(temporary / METRICS, metrics(run, trained, uniform_nats(prior)))
