"""What is known of a finished sweep, as rows and as JSON. No clocks, hosts or paths: the same sweep, the same bytes."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.tune.objectives import Figures, Objectives, undominated
from pipeline.tune.space import Overrides
from pipeline.tune.trials import Sweep, Trial, own_values

FIGURES = ("neg_elbo_nats", "distortion_nats", "rate_nats")
BASELINE = "baseline"


@dataclass(frozen=True)
class Candidate:
    """The baseline or a trial.

    Attributes:
        status: baseline, completed, stopped or failed; the first two are finished.
        values: of the swept keys.
        figures: of the validation split after the last of `epochs`.
    """

    name: str
    status: str
    epochs: int
    values: Overrides
    figures: Figures

    @property
    def is_finished(self) -> bool:
        return self.status in (BASELINE, "completed")


def candidates(sweep: Sweep, trials: Sequence[Trial]) -> list[Candidate]:
    """The baseline, then the trials in their order."""
    first = Candidate(BASELINE, BASELINE, sweep.baseline.train.epochs, own_values(sweep), sweep.known)
    return [first, *(Candidate(t.name, t.status, len(t.epochs), t.overrides, t.figures) for t in trials)]


def best_of(found: Sequence[Candidate], objectives: Objectives, figure: str | None = None) -> Candidate:
    """The best finished candidate in the first objective, or in `figure`; of equal ones the first."""
    position = objectives.names.index(figure) if figure else 0
    finished = [each for each in found if each.is_finished]
    unbeaten = undominated({each.name: objectives.costs(each.figures) for each in finished})
    return min(
        (each for each in finished if each.name in unbeaten), key=lambda e: objectives.costs(e.figures)[position]
    )


def pareto(found: Sequence[Candidate], objectives: Objectives) -> list[str]:
    """The finished candidates that none beats in everything: in the objectives; where there is but one, in rate and
    distortion, for a family that has both."""
    finished = [each for each in found if each.is_finished]
    if len(objectives.names) == 1 and all("rate_nats" in each.figures for each in finished):
        objectives = Objectives(("rate_nats", "distortion_nats"), ("min", "min"))
    return undominated({each.name: objectives.costs(each.figures) for each in finished})


def table(found: Sequence[Candidate], objectives: Objectives) -> str:
    """trials.csv: one line a candidate; `metric` is the first objective."""
    best, front = best_of(found, objectives).name, pareto(found, objectives)
    names = [*FIGURES, *(name for name in objectives.names if name not in FIGURES)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    swept = list(found[0].values)
    writer.writerow(
        ["trial", "status", "epochs", *swept, *(f"val_{name}" for name in names), "metric", "best", "pareto"]
    )
    for each in found:
        figures = [_number(each.figures, name) for name in (*names, objectives.names[0])]
        marks = [_truth(each.name == best), _truth(each.name in front)]
        writer.writerow([each.name, each.status, each.epochs, *(each.values[key] for key in swept), *figures, *marks])
    return out.getvalue()


def best_json(found: Sequence[Candidate], objectives: Objectives) -> dict[str, Any]:
    """The best candidate in each objective."""
    return {name: _described(best_of(found, objectives, name)) for name in objectives.names}


def population_json(trials: Sequence[Trial]) -> dict[str, Any]:
    """What members of a population were trained with, up to which epoch, and whose weights they took over. Empty for
    other sweeps: DVC wants the same files of each."""
    return {
        trial.name: [
            {"epochs": segment.epochs, "begun_from": segment.begun_from, "values": segment.overrides}
            for segment in trial.segments
        ]
        for trial in trials
        if trial.segments
    }


def _described(each: Candidate) -> dict[str, Any]:
    figures = {name: round(value, 6) for name, value in each.figures.items() if math.isfinite(value)}
    return {"trial": each.name, "epochs": each.epochs, "values": dict(each.values), "figures": figures}


def _number(figures: Mapping[str, float], name: str) -> str:
    return f"{figures[name]:.6f}" if name in figures else ""


def _truth(value: bool) -> str:
    return "true" if value else "false"
