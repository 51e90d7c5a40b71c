"""Sweeps against plain Ray Tune: the same trials by the same loop, one core each, on all cores.

python -m bench.tune                         # 32 trials of 3 epochs, about ten minutes; after `dvc repro shard`
python -m bench.tune --trials 8 --epochs 1   # quicker; writes no results
python -m bench.tune --quick                 # a smoke run on few digits; writes no results

Ours is the stage `tune` with `scheduler: none`, so that every trial runs to its end; plain Ray Tune gets the list of
trials that ours drew, and a new process for each. Both times are of a whole program, with the start and end of Ray.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.report import Target, as_json, say, show, versions
from bench.training.given import base_run, digits, protocol
from bench.tuning import profile, sweeps, tables
from pipeline import files
from pipeline.config import load_params
from pipeline.errors import UserError
from pipeline.stages import SHARDS
from pipeline.train.run import TrainRun

RESULTS = Path("bench/results/tune.json")
PACKAGES = ("torch", "ray", "numpy")
TRIALS, EPOCHS = 32, 3


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    trials, epochs = (2, 1) if arguments.quick else (arguments.trials, arguments.epochs)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-tune-") as folder:
            shards = digits(Path(folder)) if arguments.quick else SHARDS
            base = base_run(load_params(), shards, epochs, arguments.precision)
            run(Path(folder), base, shards, trials, write=(trials, epochs) == (TRIALS, EPOCHS))
    except (UserError, RuntimeError) as error:
        sys.stderr.write(f"bench.tune: {error}\n")
        return 1
    return 0


def run(folder: Path, base: TrainRun, shards: Path, count: int, *, write: bool) -> None:
    """Measure both, print, and write the results where `write` says so."""
    start = time.perf_counter()
    say(f"our sweep of {count} trials, after the baseline that it is compared with")
    project, ours_s = sweeps.ours(folder / "project", shards, base, count)
    rows = sweeps.drawn(project)
    say(f"plain Ray Tune, the same {len(rows)} trials")
    marks, plain_s = sweeps.plain(folder / "plain", [(row["trial"], sweeps.run_of(base, row)) for row in rows])
    seconds = {tables.OURS: ours_s, tables.PLAIN: plain_s}
    found = [
        tables.throughput(base.train, len(rows), seconds, sweeps.alike(rows, marks)),
        tables.parts(marks, profile.of_ours(project / ".runs"), seconds),
    ]
    aims = [Target("our sweep: x the trials an hour of plain Ray Tune", 1.5, plain_s / ours_s)]
    show(found, aims, PACKAGES)
    say(f"{time.perf_counter() - start:.0f} s in all")
    if write:
        facts = {"versions": versions(*PACKAGES), "protocol": {**protocol(base), "space": sweeps.SPACE}}
        files.write_json(RESULTS, as_json(found, aims, facts))
        say(f"written to {RESULTS}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.tune", description="Sweeps against plain Ray Tune.")
    parser.add_argument("--trials", type=int, default=TRIALS, help="combinations, at most 39")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each trial")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of both")
    parser.add_argument("--quick", action="store_true", help="a smoke run on few digits; writes no results")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
