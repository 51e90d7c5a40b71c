"""The same trials by plain Ray Tune: a new process for each, one core each, Ray's defaults otherwise.

python -m bench.tuning.plain TRIALS MARKS STORAGE: TRIALS a pickled list of (name, TrainRun); MARKS is the JSON file
that gets for each trial when it came how far; STORAGE a folder for Ray and for the runs. A program of its own, since
the sweep it is compared with is one too.
"""

import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any


def trial(config: dict[str, Any]) -> None:
    """The training loop as it is, reporting to Tune after each epoch."""
    import psutil
    from ray import tune

    from pipeline.train.loop import train

    entered = time.time()
    name, run = config["trial"]
    ends: list[float] = []
    reports: list[float] = []
    figures: dict[str, float] = {}

    def report(epoch: int, found: dict[str, float]) -> None:
        ends.append(time.time())
        figures.update(found)
        tune.report(dict(found))
        reports.append(time.time() - ends[-1])

    train(run, Path(config["storage"]) / name, on_epoch=report, checkpoint_every_steps=config["every"])
    marks = {
        "name": name,
        "created": psutil.Process().create_time(),
        "entered": entered,
        "ends": ends,
        "reports": reports,
        "done": time.time(),
        "figures": figures,
    }
    Path(config["storage"], f"{name}.json").write_text(json.dumps(marks))


def main(trials: Path, marks: Path, storage: Path) -> None:
    from ray import tune

    from bench.training.ours import CHECKPOINT_EVERY_STEPS

    listed = pickle.loads(trials.read_bytes())  # written by the bench itself, a moment ago
    runs = storage / "runs"
    runs.mkdir(parents=True)
    results = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space={"trial": tune.grid_search(listed), "storage": str(runs), "every": CHECKPOINT_EVERY_STEPS},
        run_config=tune.RunConfig(name="plain", storage_path=str(storage / "ray")),
    ).fit()
    if results.num_errors:
        raise SystemExit(str(results.errors[0]))
    found = [json.loads((runs / f"{name}.json").read_text()) for name, _ in listed]
    marks.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
