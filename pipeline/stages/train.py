"""train one family with Ray Train: shards -> models/F/baseline"""

import shutil
from pathlib import Path

from pipeline import runtime
from pipeline.config import Params
from pipeline.progress import say
from pipeline.stages import MODELS, RESULTS, SHARDS, required
from pipeline.train.publish import publish_curves, publish_model
from pipeline.train.run import TrainRun
from pipeline.train.worker import fit


def main(params: Params, family: str | None) -> None:
    runtime.end_with_dvc()
    family = required(family)
    run = TrainRun.of(params.models[family], params.train, SHARDS, params.compute)
    directory = Path(params.compute.storage).resolve() / run.name
    steps = -(-run.reading.manifest().counts["train"] // params.train.global_batch_size)
    with runtime.exclusive(directory):
        fit(run, directory, params.compute, what=f"train {family}", total_steps=steps * params.train.epochs)
        publish_model(run, directory, MODELS / family / "baseline")
        publish_curves(directory, RESULTS / "train" / family / "curves.tsv")
    shutil.rmtree(directory)
    say(f"model: {MODELS / family / 'baseline'}")
