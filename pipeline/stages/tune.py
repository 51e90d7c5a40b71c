"""sweep one family with Ray Tune; the best by validation ELBO, baseline included: -> models/F/best"""

import shutil
from pathlib import Path

from pipeline import runtime
from pipeline.config import Params, fingerprint
from pipeline.progress import say
from pipeline.stages import MODELS, RESULTS, SHARDS, required
from pipeline.train.run import TrainRun
from pipeline.tune.publish import publish_sweep
from pipeline.tune.search import plan, search
from pipeline.tune.space import current


def main(params: Params, family: str | None) -> None:
    runtime.end_with_dvc()
    family = required(family)
    config, space = params.tune.search, params.tune.spaces[family]
    baseline = TrainRun.of(params.models[family], params.train, SHARDS, params.compute)
    storage = Path(params.compute.storage).resolve() / f"sweep-{fingerprint((baseline.name, config, space))}"
    with runtime.exclusive(storage):
        trials = plan(baseline, config, space, storage)
        search(trials, config, params.compute, storage=storage, what=f"tune {family}")
        best = publish_sweep(
            trials,
            MODELS / family / "baseline",
            current(baseline.model, space),
            MODELS / family / "best",
            RESULTS / "tune" / family,
        )
    shutil.rmtree(storage)
    say(f"best of {len(trials)} trials and the baseline: {best}; table: {RESULTS / 'tune' / family / 'trials.csv'}")
