"""The data path against its peers: reading, writing, opening and shuffling, in one run on one machine.

python -m bench.data            # about four minutes, 3 GB of disk
python -m bench.data --quick    # a smoke run; writes no results

Peers get the rows, the batch size, the random order and the result (torch tensors of uint8 images and of labels) that
we get, the options of their documents, and shards of as many rows. The data go to a new folder in
BENCH_DATA_FOLDER, or to a temporary one that is removed.
"""

import argparse
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.data import tables
from bench.data.measure import can_drop, cores
from bench.data.readers import BATCH
from bench.data.tables import OURS, TARS_ALONE, Size
from bench.report import Table, Target, as_json, say, show, versions
from pipeline import files

RESULTS = Path("bench/results/data.json")
PACKAGES = ("numpy", "torch", "pyarrow", "pillow", "webdataset", "mosaicml-streaming")
WHOLE = Size(gray=60_000, rgb=20_000, shards=1000, rounds=5, seconds=0.5, written=4000)
QUICK = Size(gray=4000, rgb=1000, shards=50, rounds=1, seconds=0.1, written=500)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.data")
    parser.add_argument("--quick", action="store_true", help="a smoke run on little data; writes no results")
    quick = parser.parse_args().quick
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes to them
    warnings.filterwarnings("ignore", "This DataLoader will create")  # it looks at the one core of the parent
    torch.set_num_threads(1)
    kept = os.environ.get("BENCH_DATA_FOLDER")
    folder = Path(tempfile.mkdtemp(prefix="bench-data-", dir=kept))
    try:
        with cores(1):
            run(folder, QUICK if quick else WHOLE, write=not quick)
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, size: Size, *, write: bool) -> None:
    start = time.perf_counter()
    say("writing the sets")
    gray, rgb, png = tables.written(folder, size)
    say("measuring the writers")
    writers = [tables.writing(places, size, folder / "again") for places in (gray, rgb)]
    say("measuring the readers")
    dropped = can_drop(gray.shards)
    readers = [
        tables.reading(gray, "raw", size, dropped),
        tables.reading(rgb, "raw", size, dropped),
        tables.reading(png, "png", size, dropped),
    ]
    say("measuring opening and mixing")
    opening, mixed = tables.opening(folder / "many", size), tables.shuffling(gray)
    all_tables = [*readers, *writers, opening, mixed]
    targets = _targets(readers, writers, opening)
    show(all_tables, targets, PACKAGES)
    say(f"{time.perf_counter() - start:.0f} s in all")
    if write:
        protocol = {"batch_size": BATCH, "rounds": size.rounds, "shard_rows": tables.SHARD_ROWS}
        files.write_json(RESULTS, as_json(all_tables, targets, {"versions": versions(*PACKAGES), "protocol": protocol}))
        say(f"written to {RESULTS}")


def _targets(readers: Sequence[Table], writers: Sequence[Table], opening: Table) -> list[Target]:
    gray, rgb = ({row.name: row.figures for row in table.rows} for table in readers[:2])
    targets = []
    for figures, name, least in ((gray, "28x28", 200), (rgb, "64x64 RGB raw", 50)):
        fastest = max(row["warm"] or 0.0 for peer, row in figures.items() if peer.startswith("webdataset"))
        targets.append(Target(f"read {name}: x the faster webdataset", least, (figures[OURS]["warm"] or 0.0) / fastest))
    targets.append(Target("read 64x64 RGB raw: of the limit", 0.5, rgb[OURS]["of the limit"] or 0.0))
    for table in writers:
        rates = {row.name: row.figures.get("written") or 0.0 for row in table.rows}
        fastest = max(rate for name, rate in rates.items() if name.startswith("webdataset"))
        size = table.title.rpartition(", ")[2]
        for name, what in ((TARS_ALONE, "tars alone"), (OURS, "the whole job")):
            targets.append(Target(f"written {size}, {what}: x the faster ShardWriter", 20, rates[name] / fastest))
    seconds = opening.rows[0].figures["seconds"] or 0.0
    targets.append(Target("opened: seconds to the first batch", None, seconds, below=1))
    return targets


if __name__ == "__main__":
    main()
