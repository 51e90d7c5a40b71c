"""What the page shows of one family's sweep: its candidates, the best first, and the pictures of them."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.report.inputs import TRIALS, Family, Picture, Row
from pipeline.report.vocabulary import METRICS, figure
from vae_core.metrics.primary import primary

CHARTS = {"neg_elbo": "Negative ELBO, β = 1", "distortion": "Distortion", "rate": "Rate"}

DISTORTION = ("Distortion", "Validation split, lower is better. The dotted line is that of the best.")
RATE_DISTORTION = (
    "Rate against distortion",
    "Validation split. Towards the lower left is better: fewer nats for the code, fewer for what the code leaves out. "
    "Along the dotted line the negative ELBO equals that of the best.",
)
PARALLEL = ("Parallel coordinates", "A line a trial: its values, and what they gave.")
IMPORTANCE = (
    "Importance of each key",
    "How much of the differences between finished trials it explains. With few trials this says little.",
)


def sweep_section(family: Family) -> Mapping[str, Any]:
    swept = [column for column in family.trials[0] if column not in TRIALS and not column.startswith("val_")]
    others = [name for name in family.objectives if f"val_{name}" not in TRIALS]
    return {
        "judged_by": " and ".join(map(_label, family.objectives)),
        "baseline_won": any(row["best"] == "true" and row["status"] == "baseline" for row in family.trials),
        "swept": swept,
        "others": [(_label(name), METRICS[name].unit if name in METRICS else "") for name in others],
        "trials": [_trial(row, swept, others) for row in sorted(family.trials, key=_by_epochs_then_figure(family))],
        "pictures": list(_pictures(family)),
    }


def number(row: Row, column: str) -> float:
    try:
        return float(row[column])
    except ValueError:
        return math.nan


def is_numeral(text: str) -> bool:
    return re.fullmatch(r"-?[\d.]+(e-?\d+)?", text) is not None


def _by_epochs_then_figure(family: Family) -> Callable[[Row], tuple[float, float]]:
    """The order of trials: those stopped early compare only among themselves, so they come after the others."""
    decides = METRICS.get(family.objectives[0])
    sign = -1 if decides and decides.better == "higher" else 1

    def place(row: Row) -> tuple[float, float]:
        value = number(row, "metric")
        return (-number(row, "epochs"), sign * value) if math.isfinite(value) else (math.inf, math.inf)

    return place


def _trial(row: Row, swept: Sequence[str], others: Sequence[str]) -> Mapping[str, Any]:
    decimals = {f"{key}_nats": 2 for key in CHARTS}
    decimals |= {name: METRICS[name].decimals if name in METRICS else 4 for name in others}
    return {
        "name": row["trial"],
        "status": row["status"],
        "epochs": row["epochs"],
        "settings": [row[key].replace("-", "−") if is_numeral(row[key]) else row[key] for key in swept],
        "values": [figure(number(row, f"val_{name}"), places) for name, places in decimals.items()],
        "best": row["best"] == "true",
        "unbeaten": row["pareto"] == "true",
    }


def _pictures(family: Family) -> Iterator[tuple[str, str, Picture]]:
    """Title, text and picture."""
    has_rate = primary(family.metrics["best"]) == "neg_elbo_nats"
    yield *(RATE_DISTORTION if has_rate else DISTORTION), family.sweep["rate_distortion"]
    if len(family.trials) > 1:
        yield *PARALLEL, family.sweep["parallel_coordinates"]
    if family.explained:
        yield *IMPORTANCE, family.sweep["importance"]


def _label(name: str) -> str:
    """A figure as part of a sentence."""
    label = METRICS[name].label.split(",")[0] if name in METRICS else name.removesuffix("_nats").replace("_", " ")
    return label if label[:2].isupper() else label[:1].lower() + label[1:]
