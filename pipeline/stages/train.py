"""train one family with Ray Train: shards -> models/F/baseline"""

from pipeline.config import Params
from pipeline.progress import say
from pipeline.stages import MODELS, RESULTS, SHARDS, required
from pipeline.train import storage
from pipeline.train.folders import Folder, store_of
from pipeline.train.lock import exclusive
from pipeline.train.publish import publish_history, publish_model
from pipeline.train.retention import forget_oldest
from pipeline.train.run import TrainRun
from pipeline.train.tracking import MetricLog
from pipeline.train.worker import fit


def main(params: Params, family: str | None) -> None:
    family = required(family)
    run = TrainRun.of(params.models[family], params.train, SHARDS, params.compute)
    folder = run.folder(family, params.compute)
    with exclusive(folder):
        if storage.is_finished(folder):
            say(
                f"train {family} is finished; its outputs are written again from {folder.location} "
                f"(python -m pipeline runs rm {run.folder_name(family)} trains it anew)"
            )
        else:
            _train(run, folder, params, family)
        publish_model(run, folder, MODELS / family / "baseline")
        publish_history(folder, family, RESULTS / "train" / family)
    forget_oldest(store_of(params.compute), params.compute.keep_runs)
    say(f"model: {MODELS / family / 'baseline'}")


def _train(run: TrainRun, folder: Folder, params: Params, family: str) -> None:
    storage.record(folder, {"kind": "train", "family": family, **run.described})
    steps = -(-run.reading.manifest().counts["train"] // params.train.global_batch_size)
    fit(run, folder, params.compute, what=f"train {family}", total_steps=steps * params.train.epochs)
    storage.finish(folder, {"figures": MetricLog(folder).epochs()[-1]})
