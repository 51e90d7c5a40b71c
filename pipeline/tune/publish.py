"""A finished sweep -> the best model, the table of trials, and rate against distortion."""

import csv
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipeline import files
from pipeline.figures import save_png
from pipeline.train.publish import METRICS, publish_model
from pipeline.tune.search import Trial
from pipeline.tune.space import Overrides
from vae_core.metrics.primary import primary

FIGURES = ("neg_elbo_nats", "distortion_nats", "rate_nats")


def publish_sweep(trials: Sequence[Trial], baseline: Path, overrides: Overrides, models: Path, results: Path) -> str:
    """Keep the best by the primary metric on the validation split; the baseline wins a tie.

    Args:
        baseline: directory of the baseline's model, with its figures.
        overrides: the baseline's values of the swept keys.

    Returns:
        The name of the best.
    """
    given = files.read_json(baseline / METRICS)
    rows = [_row("baseline", "baseline", given["epochs"], overrides, given["val"])]
    rows += [_row(t.name, t.status, len(t.epochs), t.overrides, t.epochs[-1] if t.epochs else {}) for t in trials]
    finished = [row for row in rows if row["status"] in ("baseline", "completed")]
    best = min(finished, key=lambda row: row[f"val_{primary(given['val'])}"])["trial"]
    _keep(best, trials, baseline, models)
    with files.new_directory(results) as temporary:
        (temporary / "trials.csv").write_text(_table(rows, best))
        save_png(rate_distortion(rows, best), temporary / "rate_distortion.png")
    return str(best)


def rate_distortion(rows: Sequence[dict[str, Any]], best: str) -> Figure:
    """Distortion against rate of every trial; along the dotted line the negative ELBO equals that of the best.

    A family without a rate has its trials side by side.
    """
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    shown = [row for row in rows if "val_distortion_nats" in row]
    has_rate = all("val_rate_nats" in row for row in shown)
    across = {row["trial"]: row["val_rate_nats"] if has_rate else i for i, row in enumerate(shown)}
    for status, colour in (("completed", "tab:blue"), ("stopped", "tab:gray"), ("baseline", "tab:orange")):
        points = [(across[row["trial"]], row["val_distortion_nats"]) for row in shown if row["status"] == status]
        if points:
            axes.scatter(*zip(*points, strict=True), color=colour, label=status, zorder=2)
    chosen = next(row for row in shown if row["trial"] == best)
    at = (across[best], chosen["val_distortion_nats"])
    axes.scatter(*at, s=160, facecolors="none", edgecolors="tab:red", label=f"best ({best})", zorder=3)
    axes.axline(at, slope=-1 if has_rate else 0, color="tab:red", linestyle=":", linewidth=1, zorder=1)
    axes.set(
        xlabel="rate [nats]" if has_rate else "trial (this family has no rate)",
        ylabel="distortion [nats]",
        title="Validation split",
    )
    axes.legend()
    return figure


def _keep(best: str, trials: Sequence[Trial], baseline: Path, models: Path) -> None:
    winner = next((trial for trial in trials if trial.name == best), None)
    if winner is not None:
        publish_model(winner.run, winner.directory, models)
        return
    with files.new_directory(models) as temporary:
        shutil.copytree(baseline, temporary, dirs_exist_ok=True)


def _row(name: str, status: str, epochs: int, overrides: Overrides, val: dict[str, float]) -> dict[str, Any]:
    figures = {f"val_{figure}": val[figure] for figure in FIGURES if figure in val}
    return {"trial": name, "status": status, "epochs": epochs, **overrides, **figures}


def _table(rows: Sequence[dict[str, Any]], best: str) -> str:
    out = io.StringIO()
    swept = [key for key in rows[0] if key not in ("trial", "status", "epochs") and not key.startswith("val_")]
    names = ["trial", "status", "epochs", *swept, *(f"val_{figure}" for figure in FIGURES), "best"]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        rounded = {k: f"{v:.6f}" if k.startswith("val_") else v for k, v in row.items()}
        writer.writerow({**rounded, "best": "true" if row["trial"] == best else "false"})
    return out.getvalue()
