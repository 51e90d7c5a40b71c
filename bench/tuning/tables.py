"""The tables of the benchmark: trials an hour, and where the time of a trial goes."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report import CORES, Row, Table
from bench.tuning import profile
from pipeline.train.config import TrainConfig

OURS, PLAIN = "our sweep", "plain Ray Tune"


def throughput(train: TrainConfig, count: int, seconds: Mapping[str, float], same: int) -> Table:
    """Trials an hour of both.

    Args:
        train: of each trial.
        seconds: of each whole program.
        same: trials whose figure is the same in both.
    """
    rows = [
        Row(
            name,
            {
                "trials/h": 3600 * count / seconds[name],
                "seconds": seconds[name],
                "x plain": seconds[PLAIN] / seconds[name],
            },
        )
        for name in (OURS, PLAIN)
    ]
    return Table(
        f"Trials an hour: {count} trials of {train.epochs} epochs, {train.precision}",
        f"{CORES} trials at a time, a core each; the same combinations, model, data and loop (the validation figure "
        f"of {same} of {count} trials is the same in both); each a program of its own, timed from its start to its "
        "end, with Ray's. Ours: `python -m pipeline tune` with `scheduler: none`, its tables and figures included; "
        "plain: tune.Tuner(trainable).fit() with its defaults, a new process for each trial",
        rows,
        {"trials/h": ",.0f", "seconds": ",.1f", "x plain": ".2f"},
    )


def parts(marks: Sequence[Mapping[str, Any]], ours_s: float, seconds: Mapping[str, float]) -> Table:
    """Seconds of a core for one trial.

    Args:
        marks: of the trials of plain Ray Tune.
        ours_s: median of our trials, from the first file in their folders to the last.
        seconds: of each whole program.
    """
    plain = profile.medians(marks)
    whole = {name: CORES * seconds[name] / len(marks) for name in (OURS, PLAIN)}
    inside = {OURS: ours_s, PLAIN: sum(plain.values())}
    rows = [Row(f"  {name}", {PLAIN: value}) for name, value in plain.items()]
    rows += [
        Row("in the trial", inside),
        Row("beside it", {name: whole[name] - inside[name] for name in whole}),
        Row("in all", whole),
    ]
    return Table(
        "Where the time of a trial goes: seconds of a core",
        "medians over the trials. Of plain Ray Tune by the trial's own clock, from the creation of its process to the "
        "end of its function; of ours from the first file in the trial's folder to the last. In all: cores x time of "
        "the program / trials; beside it: start and end of Ray and of the program, and cores that wait",
        rows,
        {OURS: ".2f", PLAIN: ".2f"},
    )
