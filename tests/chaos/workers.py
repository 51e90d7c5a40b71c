"""Train with 1, 2 and 4 workers, and with a number that changes on the way, and compare.

    python tests/chaos/workers.py --data mnist --out workers.json

The same global batches, row for row, and the same -ELBO on the test split within 0.05 nats. `mnist` needs data/shards
of this checkout (`dvc repro shard`); the digits are made anew. About 5 minutes for MNIST on two cores.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import chaos_project
import processes

from pipeline.data.config import DataConfig, PublishedSource, ReadConfig, ShardConfig
from pipeline.data.ingest import prepare
from pipeline.data.loader import Loader
from pipeline.data.shards import write_here
from pipeline.data.sources.digits import open_digits
from pipeline.train.loop import evaluate
from vae_core.serialize import load_model

ROOT = Path(__file__).parents[2]
TOLERANCE_NATS = 0.05
CHANGING = (2, 1, 4)  # workers of the run that goes on with another number after each epoch


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    processes.adopt_orphans()
    root = Path(tempfile.mkdtemp(prefix="workers-"))
    try:
        report = compared(root, shards_of(args.data, root), args.epochs)
    finally:
        processes.end_all()
        shutil.rmtree(root, ignore_errors=True)
    if args.out:
        args.out.write_text(json.dumps({"data": args.data, "epochs": args.epochs, **report}, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return 1 if report["defects"] else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
    parser.add_argument("--epochs", type=int, default=len(CHANGING), help=f"at least {len(CHANGING)}")
    parser.add_argument("--out", type=Path, help="write the report there, as JSON")
    args = parser.parse_args(argv)
    if args.epochs < len(CHANGING):
        parser.error(f"--epochs: at least {len(CHANGING)}, one for each number of workers")
    return args


def shards_of(data: str, root: Path) -> Path:
    if data == "mnist":
        return ROOT / "data" / "shards"
    config = DataConfig(
        source=PublishedSource(kind="digits"), validation_fraction=0.2, test_fraction=0.2, max_bad_fraction=0.0
    )
    prepare([open_digits(None)], config, root / "data")
    return write_here(root / "data", ShardConfig(seed=0, shard_bytes=20_000))


def compared(root: Path, shards: Path, epochs: int) -> dict[str, Any]:
    """Train it with each number of workers and with a changing one; what differs is a defect."""
    runs = {"1": root / "1", "2": root / "2", "4": root / "4", "changing": root / "changing"}
    for workers in (1, 2, 4):
        finish(train(shards, runs[str(workers)], workers, epochs))
    changed_at = change(shards, runs["changing"], epochs)
    rows = {name: global_batches(folder / "seen") for name, folder in runs.items()}
    nats = {name: test_neg_elbo(folder / "model", shards) for name, folder in runs.items()}
    defects = [f"{name}: other global batches than one worker's" for name in rows if rows[name] != rows["1"]]
    defects += [
        f"{name}: test -ELBO {value:.4f} nats, one worker's {nats['1']:.4f}"
        for name, value in nats.items()
        if abs(value - nats["1"]) > TOLERANCE_NATS
    ]
    return {
        "global_batches": len(rows["1"]),
        "rows_seen": sum(map(len, rows["1"].values())),
        "test_neg_elbo_nats": nats,
        "workers_changed_at_steps": changed_at,
        "defects": defects,
    }


def train(shards: Path, folder: Path, workers: int, epochs: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, Path(__file__).with_name("trainer.py"), shards, folder, str(workers), str(epochs)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(folder.parent / "r")}
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment)


def finish(running: subprocess.Popen[bytes]) -> None:
    """Wait for its end, which must be a good one."""
    if running.wait() != 0:
        raise SystemExit(f"{running.args!r} ended with {running.returncode}")


def change(shards: Path, folder: Path, epochs: int) -> list[int]:
    """Kill it after each epoch and go on with another number of workers; the steps where it was killed."""
    killed_at: list[int] = []
    per_epoch = steps_per_epoch(folder.parent)
    for done, workers in enumerate(CHANGING[:-1], 1):
        running = train(shards, folder, workers, epochs)
        while reached(folder) < done * per_epoch and running.poll() is None:
            time.sleep(0.02)
        processes.end_all()  # its workers too, which would go on for a while
        running.wait()
        killed_at.append(reached(folder))
    finish(train(shards, folder, CHANGING[-1], epochs))
    return killed_at


def reached(folder: Path) -> int:
    """The step of the newest checkpoint."""
    return max(chaos_project.newest_steps(folder / "run").values(), default=0)


def steps_per_epoch(root: Path) -> int:
    return 1 + max(step for epoch, step in global_batches(root / "1" / "seen") if epoch == 0)


def global_batches(seen: Path) -> dict[tuple[int, int], list[str]]:
    """(epoch, step) -> the rows of the global batch in their order, from what each rank noted.

    A step that was done again after a kill must have seen the same rows again.
    """
    batches: dict[tuple[int, int], dict[int, str]] = {}
    for epoch, step, rows in notes(seen):
        batch = batches.setdefault((epoch, step), {})
        for place, row in rows.items():
            if batch.setdefault(place, row) != row:
                raise SystemExit(f"{seen}: epoch {epoch}, step {step}, place {place}: {batch[place]}, then {row}")
    return {at: [batch[place] for place in sorted(batch)] for at, batch in sorted(batches.items())}


def notes(seen: Path) -> Iterator[tuple[int, int, dict[int, str]]]:
    for file in sorted(seen.glob("*.jsonl")):
        for line in file.read_text().split("\n")[:-1]:  # a kill can leave half a line
            noted = json.loads(line)
            yield noted["epoch"], noted["step"], {int(place): row for place, row in noted["rows"].items()}


def test_neg_elbo(model: Path, shards: Path) -> float:
    """The primary figure on the test split, in nats."""
    import torch

    from pipeline.data.split_reader import open_split

    loader = Loader(open_split(shards, "test", ReadConfig()), seed=0, window_shards=1, global_batch_size=1)
    figures = evaluate(load_model(model), loader, seed=0, device=torch.device("cpu"))
    return figures["neg_elbo_nats"]


if __name__ == "__main__":
    sys.exit(main())
