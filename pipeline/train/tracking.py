"""The one stream of a run's figures, and what is made from it: curves, and progress for people."""

import json
import math
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from tqdm import tqdm

from pipeline import files
from pipeline.progress import Copied, say
from vae_core.metrics.primary import primary

Row: TypeAlias = dict[str, Any]

SAID = "said.txt"  # in a run's directory: what its ranks tell the user
COUNTERS = ("step", "epoch", "samples", "split")
CURVES = ("neg_elbo_nats", "distortion_nats", "rate_nats")


class MetricLog:
    """Rows {step, epoch, samples, split, name: value}, one JSON object a line, in a run's directory. One writer."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "metrics.jsonl"

    def rewind(self, step: int) -> None:
        """Forget the rows after `step`, which a run that resumes there will write again."""
        kept = [row for row in self.rows() if row["step"] <= step]
        files.write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, *, step: int, epoch: int, samples: int, split: str, values: Mapping[str, float]) -> None:
        row = {"step": step, "epoch": epoch, "samples": samples, "split": split, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def rows(self) -> list[Row]:
        """Every complete row; a kill can leave half a line at the end."""
        if not self.path.exists():
            return []
        lines = self.path.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def epochs(self) -> list[dict[str, float]]:
        """The validation figures of each finished epoch, in order."""
        return [_values(row) for row in self.rows() if row["split"] == "val"]


def curves(rows: Sequence[Row]) -> str:
    """A tab-separated table, one line an epoch: epoch, step, then train and validation figures."""
    names = [f"{split}_{name}" for split in ("train", "val") for name in CURVES]
    lines = ["\t".join(["epoch", "step", *names])]
    last: dict[str, Row] = {}
    for row in rows:
        last[row["split"]] = row
        if row["split"] == "val":
            figures = [f"{last[split].get(name, math.nan):.6f}" for split in ("train", "val") for name in CURVES]
            lines.append("\t".join([str(row["epoch"] + 1), str(row["step"]), *figures]))
    return "\n".join(lines) + "\n"


@contextmanager
def follow(directory: Path, *, what: str, total_steps: int) -> Iterator[None]:
    """Show a run's progress and what its ranks say while the block runs, wherever the run itself is."""
    done, said = threading.Event(), Copied([directory / SAID])
    thread = threading.Thread(target=_show, args=(directory, said, what, total_steps, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def follow_sweep(directories: Sequence[Path], *, what: str, epochs: int) -> Iterator[None]:
    """Show how many epochs the runs in `directories` have done together, until each has done `epochs`."""
    done = threading.Event()
    thread = threading.Thread(target=_show_sweep, args=(directories, what, epochs, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show_sweep(directories: Sequence[Path], what: str, epochs: int, done: threading.Event) -> None:
    best = math.inf
    said = Copied([directory / SAID for directory in directories])
    with tqdm(
        total=epochs * len(directories), desc=what, unit="epoch", disable=not sys.stderr.isatty(), leave=False
    ) as bar:
        while not done.wait(1):
            said.pass_on()
            histories = [MetricLog(directory).epochs() for directory in directories]
            bar.n = sum(map(len, histories))
            best = min((figures[primary(figures)] for history in histories for figures in history), default=best)
            bar.set_postfix(best=f"{best:.2f} nats")
    said.pass_on()
    histories = [history for directory in directories if (history := MetricLog(directory).epochs())]
    best, name = min(((history[-1][primary(history[-1])], primary(history[-1])) for history in histories),
                     default=(math.nan, CURVES[0]))  # fmt: skip
    say(f"{what}: {len(directories)} trials, best validation {name.removesuffix('_nats')} {best:.2f} nats")


def _show(directory: Path, said: Copied, what: str, total_steps: int, done: threading.Event) -> None:
    log, shown = MetricLog(directory), 0
    on_terminal = sys.stderr.isatty()
    with tqdm(total=total_steps, desc=what, unit="step", disable=not on_terminal, leave=False) as bar:
        while True:
            last = done.wait(0.5)
            said.pass_on()
            rows = log.rows()
            for row in rows[shown:]:
                bar.n = row["step"]
                if primary(row) in row:  # not where every step of an epoch was skipped
                    bar.set_postfix({"epoch": row["epoch"] + 1, primary(row): f"{row[primary(row)]:.2f}"})
                if row["split"] == "val" and not on_terminal:
                    say(f"{what}: epoch {row['epoch'] + 1}, validation {_words(row)}")
            shown = max(len(rows), shown)
            if last:
                return


def _words(row: Row) -> str:
    return ", ".join(f"{name.removesuffix('_nats')} {row[name]:.2f}" for name in CURVES if name in row) + " nats"


def _values(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in COUNTERS}
