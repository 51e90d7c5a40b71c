"""train the prior over one family's codes, where it has codes -> models/F/prior"""

from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline import files
from pipeline.config import Params, PriorConfig
from pipeline.data.loader import Split, open_split
from pipeline.evaluate.models import open_model
from pipeline.prior.codes import encode_split
from pipeline.prior.train import PriorRun, Trained, metrics, outcome, train_prior
from pipeline.progress import say
from pipeline.stages import MODELS, SHARDS, required
from pipeline.train import storage
from pipeline.train.computing import computing
from pipeline.train.config import ComputeConfig
from pipeline.train.folders import Folder, store_of
from pipeline.train.lock import exclusive
from pipeline.train.publish import METRICS
from pipeline.train.retention import forget_oldest
from vae_core.config import to_dict
from vae_core.models import CodeModel
from vae_core.priors import uniform_nats
from vae_core.priors.files import describe_prior
from vae_core.sampling import can_sample
from vae_core.serialize import CONFIG, WEIGHTS

NONE = {"kind": "none", "reason": "the prior of this family is part of its model"}


def main(params: Params, family: str | None) -> None:
    family = required(family)
    best, out = MODELS / family / "best", MODELS / family / "prior"
    model = open_model(best)
    if isinstance(model, CodeModel) and not can_sample(model):
        _train(model, best, out, params.prior, params.compute, family)
        return
    with files.new_directory(out) as temporary:
        files.write_json(temporary / METRICS, NONE)
    say(f"{family}: {NONE['reason']}")


def _train(model: CodeModel, best: Path, out: Path, config: PriorConfig, compute: ComputeConfig, family: str) -> None:
    splits = [open_split(SHARDS, name, compute.read) for name in ("train", "val")]
    run, store = PriorRun.of(config, model, best, splits[0].digest), store_of(compute)
    folder = store.sub(f"{family}-{run.name}")
    with exclusive(folder):
        trained = outcome(run, folder) if storage.is_finished(folder) else None
        if trained is not None:
            say(
                f"prior {family} is finished; its outputs are written again from {folder.location} "
                f"(python -m pipeline runs rm {family}-{run.name} trains it anew)"
            )
        else:
            storage.record(folder, {"kind": "prior", "family": family, **run.lineage, "prior": to_dict(config)})
            threads = torch.get_num_threads() if compute.threads == "auto" else compute.threads
            with computing(threads):
                trained = _to_the_end(run, model, splits, folder, compute, family)
            storage.finish(folder, {"figures": trained.epochs[trained.best_epoch]["val"]})
        publish(run, trained, out)
    forget_oldest(store, compute.keep_runs)
    cost, baseline = trained.epochs[trained.best_epoch]["val"]["nll_nats"], uniform_nats(run.build())
    say(f"{family}: validation codes cost {cost:.2f} nats an image (uniform {baseline:.2f}); prior: {out}")


def _to_the_end(
    run: PriorRun, model: CodeModel, splits: Sequence[Split], folder: Folder, compute: ComputeConfig, family: str
) -> Trained:
    """The run trained from its newest checkpoint on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, val = (
        encode_split(model, split, seed=run.config.seed, device=device, what=f"codes of {family} {split.name}")
        for split in splits
    )
    return train_prior(
        run, train, val, folder, checkpoint_every_steps=compute.checkpoint_every_steps, what=f"prior {family}"
    )


def publish(run: PriorRun, trained: Trained, out: Path) -> None:
    """Write the best epoch's prior to `out`: weights, configuration with lineage, figures."""
    prior = run.build()
    with files.new_directory(out) as temporary:
        (temporary / WEIGHTS).write_bytes(trained.weights)
        files.write_json(temporary / CONFIG, {**describe_prior(prior), "lineage": run.lineage})
        files.write_json(temporary / METRICS, metrics(run, trained, uniform_nats(prior)))
