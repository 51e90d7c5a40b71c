"""sweep one family with Ray Tune; the best on validation, baseline included: -> models/F/best"""

from pipeline.config import Params
from pipeline.progress import say
from pipeline.stages import FEATURES, MODELS, RESULTS, SHARDS, required
from pipeline.train.lock import exclusive
from pipeline.train.retention import forget_oldest
from pipeline.train.run import TrainRun
from pipeline.tune.experiments import publish_experiments
from pipeline.tune.packing import packed
from pipeline.tune.plan import plan
from pipeline.tune.publish import publish_sweep
from pipeline.tune.search import search
from pipeline.tune.trials import Sweep, end


def sweep_of(params: Params, family: str) -> Sweep:
    """The sweep that params.yaml describes, around the baseline that is there.

    Raises:
        UserError: the baseline is missing, or there is no such figure as tune.metric.
    """
    return plan(
        family,
        TrainRun.of(params.models[family], params.train, SHARDS, params.compute),
        MODELS / family / "baseline",
        search=params.tune.search,
        space=params.tune.spaces[family],
        metric=params.tune.metric,
        compute=params.compute,
        features=FEATURES,
    )


def main(params: Params, family: str | None) -> None:
    family = required(family)
    baseline, results = MODELS / family / "baseline", RESULTS / "tune" / family
    sweep = sweep_of(params, family)
    with exclusive(sweep.folder):
        with packed(params.compute) as trainer:
            trials = search(sweep, trainer)
        best = publish_sweep(sweep, trials, baseline, MODELS / family / "best", results)
        end(sweep, best)
    publish_experiments(sweep, trials, count=params.tune.publish)
    forget_oldest(params.compute.storage, params.compute.keep_runs)
    say(f"best of {len(trials)} trials and the baseline: {best}; table: {results / 'trials.csv'}")
