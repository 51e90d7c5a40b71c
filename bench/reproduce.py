"""Train what papers and other projects published figures of, and print ours beside theirs.

python -m bench.reproduce --list
python -m bench.reproduce iwae_k5 --data FOLDER                      # the full schedule: for a GPU
python -m bench.reproduce iwae_k5 --data FOLDER --schedule 0.01 --precision bf16   # a hundredth of it: for a CPU
python -m bench.reproduce --all --data FOLDER

FOLDER holds the four IDX files of MNIST, plain or .gz (a pipeline that has ingested MNIST keeps them in
.cache/downloads/mnist), and for dSprites, if wanted, the published .npz; else the sprites are rendered. FOLDER may
also be an .npz with x_train, y_train, x_test, y_test.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench.reproduction import results as kept
from bench.reproduction.data import Data, open_data
from bench.reproduction.evaluation import evaluate
from bench.reproduction.row import UNITS, Row
from bench.reproduction.rows import ROWS, find
from bench.reproduction.training import How, OutOfTimeError, fit

OUT = Path("bench/results/reproduction.json")
FEWER_SAMPLES = 500  # of an estimate below a tenth of the schedule, where thousands would take longer than training
STOPPED = 75


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every row asked for was run; 75 when --minutes ran out first: the same command goes on."""
    arguments = parse(argv)
    if arguments.list:
        say(kept.table(kept.read(arguments.out)))
        return 0
    try:
        wanted = [row for row in ROWS if not row.missing] if arguments.all else [find(name) for name in arguments.rows]
        for row in wanted:
            reproduce(row, arguments)
    except OutOfTimeError as stopped:
        say(f"{stopped}; the same command goes on from there")
        return STOPPED
    except (ValueError, FileNotFoundError, NotImplementedError) as error:
        sys.stderr.write(f"bench.reproduce: {error}\n")
        return 1
    say(kept.table(kept.read(arguments.out)))
    return 0


def reproduce(row: Row, arguments: argparse.Namespace) -> None:
    """Every seed of a row that is not yet in the results; each is written as soon as it is there.

    Raises:
        NotImplementedError: the row needs what is not here.
    """
    if row.missing:
        raise NotImplementedError(f"{row.name}: {row.missing}")
    data = open_data(row.data, arguments.data, torch.device(arguments.device))
    for seed in row.seeds if arguments.seeds is None else arguments.seeds:
        results = kept.read(arguments.out)
        runs = results.get(kept.key(row, arguments.schedule), {}).get("runs", [])
        if any(run["seed"] == seed for run in runs) and not arguments.again:
            say(f"{row.name}, seed {seed}: in {arguments.out} already; --again trains it anew")
            continue
        run = _one(row, seed, data, arguments)
        kept.write(arguments.out, kept.merged(kept.read(arguments.out), row, arguments.schedule, run))
        say(f"{row.name}, seed {seed}: {run['got']:.4g} {UNITS[row.measure]} in {run['seconds']:,.0f} s")


def _one(row: Row, seed: int, data: Data, arguments: argparse.Namespace) -> dict[str, object]:
    fraction, how = arguments.schedule, _how(arguments)
    if row.measure == "seconds":
        how = replace(how, folder=None)  # a time is of one run without pauses
    trained = fit(row, data.train, fraction=fraction, seed=seed, how=how)
    fewer = min(row.samples, FEWER_SAMPLES) if fraction < 0.1 else row.samples
    start = time.perf_counter()
    figure = evaluate(row, trained, data, samples=arguments.samples or fewer)
    evaluated = time.perf_counter() - start
    return kept.run_entry(row, fraction, seed, how, trained, figure, data, evaluated)


def _how(arguments: argparse.Namespace) -> How:
    minutes = arguments.minutes
    return How(
        precision=arguments.precision,
        compiled=not arguments.eager,
        cuda_graphs=arguments.cuda_graphs,
        folder=arguments.checkpoints,
        stop_at=math.inf if minutes is None else arguments.started + 60 * minutes,
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.reproduce", description="Reproduce published figures.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to train; --list names them")
    parser.add_argument("--all", action="store_true", help="every row that can be run")
    parser.add_argument("--list", action="store_true", help="the table of what is published and what was obtained")
    parser.add_argument("--data", type=Path, default=Path(".cache/downloads/mnist"), help="folder of the data, or .npz")
    parser.add_argument("--schedule", type=fraction, default=1.0, help="fraction of the steps of the full schedule")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file that keeps the results")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the row's own")
    parser.add_argument("--samples", type=int, help="importance draws an image, instead of the row's own")
    parser.add_argument("--again", action="store_true", help="train seeds anew whose result is kept")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the networks in training")
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which needs a C++ compiler")
    parser.add_argument("--cuda-graphs", action="store_true", help="each step as one graph of kernels, for a GPU")
    parser.add_argument("--checkpoints", type=Path, default=Path(".cache/reproduction"))
    parser.add_argument("--minutes", type=float, help="stop with a checkpoint after so many; then exit 75")
    arguments = parser.parse_args(argv)
    if not (arguments.list or arguments.all or arguments.rows):
        parser.error("name a row, or --all, or --list")
    arguments.started = time.monotonic()
    return arguments


def fraction(text: str) -> float:
    """A share of the full schedule, above 0 and up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError("expected a fraction above 0 and up to 1")
    return value


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
