"""Training against its peers: rates, time to a figure, memory, and what the stage around the loop costs.

python -m bench.train                        # about eight minutes; MNIST in data/shards, after `dvc repro shard`
python -m bench.train --only rates descents  # some of it; writes no results
python -m bench.train --quick                # a smoke run on few digits; writes no results

Everyone trains the model `vae` of params.yaml on the same rows with the same batch; `bench/training/` says how.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.report import CORES, Table, Target, as_json, say, show, versions
from bench.training import tables, targets
from bench.training.given import base_run, digits, protocol
from bench.training.processes import Processes
from bench.training.systems import systems
from bench.training.tables import Size
from pipeline import files
from pipeline.config import load_params
from pipeline.errors import UserError
from pipeline.stages import SHARDS

RESULTS = Path("bench/results/train.json")
PACKAGES = ("torch", "numpy", "ray", "pythae")
PARTS = ("rates", "descents", "stage", "workers")
WHOLE = Size(rounds=4, descent=25, stage=10, stages=2, compiled=True, apart=True, threads=CORES)
QUICK = Size(rounds=1, descent=2, stage=4, stages=1, compiled=False, apart=False, threads=1)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        if arguments.quick:
            with tempfile.TemporaryDirectory() as folder:
                run(digits(Path(folder)), QUICK, arguments.only or PARTS, write=False)
        else:
            run(SHARDS, WHOLE, arguments.only or PARTS, write=arguments.only is None)
    except (UserError, RuntimeError) as error:
        sys.stderr.write(f"bench.train: {error}\n")
        return 1
    return 0


def run(shards: Path, size: Size, parts: Sequence[str], *, write: bool) -> None:
    """Measure `parts`, print them, and write the results where `write` says so."""
    start, params = time.perf_counter(), load_params()
    base = base_run(params, shards, max(size.descent, size.stage))
    found: list[Table] = []
    aims: list[Target] = []
    with Processes(apart=size.apart, threads=size.threads) as processes:
        contenders = systems(base, compiled=size.compiled)
        if "rates" in parts:
            say(f"images a second of {len(contenders)} systems, {size.rounds} rounds")
            found.append(tables.rates(contenders, size, processes))
            aims += targets.of_rates(found[-1])
        if "descents" in parts:
            say(f"seconds to {tables.TARGET_NATS:g} nats")
            found.append(tables.descents(contenders, params, size, processes))
            aims += targets.of_descents(found[-1])
        if "stage" in parts:
            say(f"the stage, {size.stages} times {size.stage} epochs")
            around = tables.around(contenders, shards, size, processes)
            found.append(around.table)
            aims += targets.of_stage(around)
    if "workers" in parts:
        say("1 and 2 workers")
        found.append(tables.workers(base, size))
    show(found, aims, PACKAGES)
    say(f"{time.perf_counter() - start:.0f} s in all")
    if write:
        facts = {"versions": versions(*PACKAGES), "protocol": protocol(base)}
        files.write_json(RESULTS, as_json(found, aims, facts))
        say(f"written to {RESULTS}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.train", description="Training against its peers.")
    parser.add_argument("--quick", action="store_true", help="a smoke run on few digits; writes no results")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts alone; writes no results")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
