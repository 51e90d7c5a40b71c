"""What was obtained: kept in one JSON file, earlier rows too, and shown as a table beside what was published."""

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bench.reproduction.data import Data
from bench.reproduction.evaluation import Figure
from bench.reproduction.row import UNITS, Row
from bench.reproduction.rows import ORDERS, ROWS
from bench.reproduction.training import How, Trained
from vae_core.config import to_dict

HEAD = (
    "row",
    "published",
    "accept",
    "got",
    "+-",
    "k",
    "schedule",
    "steps",
    "batch",
    "seconds",
    "seeds",
    "verdict",
    "hardware",
)
Results = dict[str, dict[str, Any]]


def key(row: Row, fraction: float) -> str:
    """Under which a row's results at this fraction of the schedule are kept."""
    return f"{row.name}@{fraction:g}"


def read(path: Path) -> Results:
    """What is kept at `path`; empty where there is no file."""
    rows: Results = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else {}
    return rows


def write(path: Path, results: Results) -> None:
    """Replace the file in one step, so that no reader or crash sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps({"rows": results}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)


def merged(results: Results, row: Row, fraction: float, run: dict[str, Any]) -> Results:
    """`results` with one more run of a row; a run of the same seed takes the place of the earlier one."""
    earlier = [old for old in results.get(key(row, fraction), {}).get("runs", []) if old["seed"] != run["seed"]]
    runs = sorted([*earlier, run], key=lambda one: one["seed"])
    return {**results, key(row, fraction): entry(row, fraction, runs)}


def entry(row: Row, fraction: float, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row of the file: the median over the seeds, and the verdict."""
    got = statistics.median(run["got"] for run in runs)
    return {
        "row": row.name,
        "measure": row.measure,
        "unit": UNITS[row.measure],
        "published": row.target.published,
        "accept": row.target.bound,
        "source": row.target.source,
        "protocol": row.protocol,
        "model": to_dict(row.model),
        "fraction": fraction,
        "got": got,
        "standard_error": _spread(runs),
        "verdict": verdict(row, fraction, got, runs),
        "runs": list(runs),
    }


def run_entry(
    row: Row, fraction: float, seed: int, how: How, trained: Trained, figure: Figure, data: Data, evaluated: float
) -> dict[str, Any]:
    """One training and its figure.

    Args:
        evaluated: seconds of the evaluation.
    """
    rate, progress = row.rate(fraction), trained.progress
    return {
        "seed": seed,
        "got": figure.got,
        "standard_error": figure.standard_error,
        "samples": figure.samples,
        "steps": progress.steps,
        "batch": row.batch_of(fraction),
        "learning_rate": rate if isinstance(rate, float) else to_dict(rate),
        "adam_epsilon": row.adam_epsilon,
        "precision": how.precision,
        "compiled": how.compiled,
        "skipped_steps": progress.skipped,
        "seconds": round(progress.seconds, 2),
        "cpu_seconds": round(progress.cpu_seconds, 2),
        "start_seconds": round(progress.start_seconds, 2),
        "evaluation_seconds": round(evaluated, 2),
        "data": data.what,
        "published_data": data.published,
        "hardware": hardware(data.train.device),
        "torch": torch.__version__,
    }


def verdict(row: Row, fraction: float, got: float, runs: Sequence[Mapping[str, Any]]) -> str:
    """met, missed, or why the figure cannot be held against the published one."""
    if fraction < 1 or not row.comparable:
        return "not comparable: " + ("reduced protocol" if fraction >= 1 else f"{fraction:.3g} of the schedule")
    if not all(run["published_data"] for run in runs):
        return "not comparable: other data"
    if row.measure == "seconds" and not all("GPU" in run["hardware"] for run in runs):
        return "not comparable: no GPU"
    if len(runs) < len(row.seeds):
        return f"not comparable: {len(runs)} of {len(row.seeds)} seeds"
    if row.measure in ("nll", "neg_elbo") and any(run["samples"] < row.samples for run in runs):
        return f"not comparable: fewer than {row.samples:,} draws"
    if row.target.bound == "none":
        return "no bound"
    return "met" if row.target.met_by(got) else "MISSED"


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return f"GPU {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"CPU {_cpu()}, {threads} thread{'s' if threads > 1 else ''}"


def table(results: Results) -> str:
    """Markdown: every row, what was published beside what was obtained, then the orders of the papers."""
    lines = [HEAD, tuple("---" for _ in HEAD)]
    for row in ROWS:
        found = [kept for kept in results.values() if kept["row"] == row.name]
        lines += [_cells(kept) for kept in sorted(found, key=lambda kept: -kept["fraction"])] or [_not_run(row)]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", *_orders(results)]).rstrip()


def _cells(kept: Mapping[str, Any]) -> tuple[str, ...]:
    runs = kept["runs"]
    digits = 3 if kept["measure"] == "mig" else 2
    error = kept["standard_error"]
    return (
        kept["row"],
        kept["published"],
        kept["accept"],
        f"{kept['got']:.{digits}f}",
        "" if error is None else f"{error:.{digits}f}",
        _same(run["samples"] for run in runs),
        f"{kept['fraction']:.3g}",
        _same(f"{run['steps']:,}" for run in runs),
        _same(f"{run['batch']:,}" for run in runs),
        f"{statistics.median(run['seconds'] for run in runs):,.0f}",
        str(len(runs)),
        kept["verdict"],
        _same(run["hardware"] for run in runs),
    )


def _not_run(row: Row) -> tuple[str, ...]:
    blanks = ("",) * (len(HEAD) - 5)
    return (row.name, row.target.published, row.target.bound, *blanks, row.missing or "not run", "")


def _orders(results: Results) -> list[str]:
    """One line for each order of which all rows were run at one fraction."""
    lines = []
    for names in ORDERS:
        for fraction in sorted({kept["fraction"] for kept in results.values() if kept["row"] in names}):
            found = [results.get(f"{name}@{fraction:g}") for name in names]
            if all(found):
                got = [kept["got"] for kept in found if kept]
                holds = "holds" if all(one > other for one, other in pairwise(got)) else "DOES NOT HOLD"
                lines.append(f"Order ({fraction:.3g} of the schedule), {' > '.join(names)}: {holds}")
    return lines


def _spread(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Standard error over the seeds where there are several, else over the test images."""
    if len(runs) == 1:
        error: float | None = runs[0]["standard_error"]
        return error
    return float(statistics.stdev(run["got"] for run in runs) / len(runs) ** 0.5)


def _same(values: Iterable[object]) -> str:
    return " / ".join(sorted({str(value) for value in values if value is not None}))


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
