"""The tables of the benchmark: who is measured, on what, and how."""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.report import CORES, Row, Table
from bench.training import ours, scaling, stage
from bench.training.clock import crossing
from bench.training.processes import Processes, descent, peak_bytes, rate
from bench.training.systems import BF16, COMPILED, FP32, HAND, LOOP, PYTHAE, STEP, System, name_of
from pipeline.config import Params
from pipeline.train.run import TrainRun

TARGET_NATS = 100.0
PEER, RIVAL = name_of(HAND, FP32), name_of(PYTHAE, FP32)
SHIPPED = "our whole loop, as in params.yaml"
STAGE = "the stage, under Ray Train"
ALONE, STRONG, WEAK = "1 worker", "2 workers, the same batch", "2 workers, twice the batch"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: of which the median counts.
        descent: epochs at most to the target.
        stage: epochs of a stage.
        stages: rounds of these.
        compiled: with torch.compile too.
        apart: a process for each system.
        threads: of torch in each.
    """

    rounds: int
    descent: int
    stage: int
    stages: int
    compiled: bool
    apart: bool
    threads: int


def rates(found: Sequence[System], size: Size, processes: Processes) -> Table:
    """Images a second of each system, and its peak of memory."""
    here = [system for system in found if not system.missing]
    each = in_turn([system.name for system in here], size.rounds, lambda at: _rate(here[at], processes))
    rows = [
        Row(
            system.name,
            {
                "images/s": each.get(system.name),
                "x hand-written": over(each.get(system.name), each.get(PEER)),
                "x pythae": over(each.get(system.name), each.get(RIVAL)),
                "peak MiB": _peak_mib(system, processes) if size.apart and not system.missing else None,
            },
            system.missing,
        )
        for system in found
    ]
    return Table(
        "Trained: images a second",
        f"{CORES} cores, the same model, batches of {found[0].run.train.global_batch_size}, pixels binarised anew at "
        "each step, Adam at a constant rate. Hand-written: torch, everything in memory, fused Adam, nothing logged or "
        "saved; pythae: its training pipeline with its defaults, binarised in the model's forward, no evaluation and "
        "no checkpoints; our step: train_step on batches in memory; our whole loop: in a process, with its log, "
        "validation and checkpoints. x hand-written: of the hand-written loop in fp32. The second epoch of a training, "
        f"median of {size.rounds} rounds, all in turn. Peak MiB: of a process for each system, which all "
        "import torch and read the shards by our reader",
        rows,
        {"images/s": ",.0f", "x hand-written": ".2f", "x pythae": ".2f", "peak MiB": ",.0f"},
    )


def _peak_mib(system: System, processes: Processes) -> float:
    return processes.call(system.name, peak_bytes) / 2**20


def _rate(system: System, processes: Processes) -> float:
    return processes.call(system.name, rate, system, 2)


def descents(found: Sequence[System], params: Params, size: Size, processes: Processes) -> Table:
    """Seconds to a validation -ELBO of 100 nats."""
    wanted = (PEER, RIVAL, *(name_of(LOOP, how) for how in (FP32, BF16, COMPILED)))
    chosen = [system for system in found if system.name in wanted]
    loop = next(system for system in found if system.name == name_of(LOOP, FP32))
    chosen.append(replace(loop, name=SHIPPED, run=replace(loop.run, train=params.train)))
    each = {
        system.name: processes.call(system.name, descent, system, size.descent, TARGET_NATS)
        for system in chosen
        if not system.missing
    }
    times = {name: crossing(seconds, figures, TARGET_NATS) for name, (seconds, figures) in each.items()}
    rows = [
        Row(
            system.name,
            {
                "seconds": times.get(system.name),
                "x pythae": over(times.get(system.name), times.get(RIVAL)),
                "epochs": len(each[system.name][0]) if system.name in each else None,
                "nats at the end": each[system.name][1][-1] if system.name in each else None,
            },
            system.missing,
        )
        for system in chosen
    ]
    return Table(
        f"Seconds to a validation -ELBO of {TARGET_NATS:g} nats",
        f"{CORES} cores, one training of each, in processes that are warm (compiled kernels too); Adam at "
        f"{loop.run.train.learning_rate:g}, the same for all; as in params.yaml: its own schedule of "
        f"{params.train.epochs} epochs in fp32. All are judged by the same function on the same split with the same "
        "draws, after each epoch; that time does not count, but what our loop does by itself (validation, checkpoints, "
        "log) does. On the line between the ends of the two epochs around it",
        rows,
        {"seconds": ".1f", "x pythae": ".2f", "epochs": ".0f", "nats at the end": ".2f"},
    )


@dataclass(frozen=True, slots=True)
class Around:
    """What the stage costs beside the training in it.

    Attributes:
        ray: share of time that an epoch takes longer under Ray Train than in one process.
        beside: share of an epoch of the stage that is not our step: reading, log, validation, checkpoints, reports.
        fixed_s: of a stage: its time without that of its epochs.
    """

    table: Table
    ray: float
    beside: float
    fixed_s: float


def around(found: Sequence[System], shards: Path, size: Size, processes: Processes) -> Around:
    """The stage `train` against the loop in one process and against the step alone, in turn."""
    step, loop = (next(one for one in found if one.name == name_of(who, FP32)) for who in (STEP, LOOP))
    run = replace(loop.run, train=replace(loop.run.train, epochs=size.stage))
    rounds = [_round(step, replace(loop, run=run), shards, size.stage, processes) for _ in range(size.stages)]
    median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    ray = median[LOOP] / median[STAGE] - 1
    table = Table(
        f"Around the loop: a stage of {size.stage} epochs",
        f"{CORES} cores, fp32; `python -m pipeline train` in a project of its own, which starts Ray and ends it, "
        f"against the same loop in a process and our step on batches in memory, in turn, median of {size.stages}. "
        f"Images a second: epochs 2 to {size.stage - 1}; of the stage by when the validation figures of each are in "
        f"its log. Fixed: the whole stage without {size.stage} times an epoch of the loop in a process. Validation and "
        "checkpoints: % of the loop's time that its thread spends there, by its own record",
        [
            Row(STEP, {"images/s": median[STEP]}),
            Row(
                LOOP,
                {
                    "images/s": median[LOOP],
                    "x our step": median[LOOP] / median[STEP],
                    **{f"{name}, %": 100 * median[name] for name in ours.BESIDE},
                },
            ),
            Row(
                STAGE,
                {
                    "images/s": median[STAGE],
                    "x our step": median[STAGE] / median[STEP],
                    "x our loop": median[STAGE] / median[LOOP],
                    "fixed, s": median["fixed"],
                },
            ),
        ],
        {
            "images/s": ",.0f",
            "x our step": ".3f",
            "x our loop": ".3f",
            "fixed, s": ".1f",
            **{f"{name}, %": ".2f" for name in ours.BESIDE},
        },
    )
    return Around(table, ray, 1 - median[STAGE] / median[STEP], median["fixed"])


def _round(step: System, loop: System, shards: Path, epochs: int, processes: Processes) -> dict[str, float]:
    """Images a second of each, fixed seconds of the stage, and shares of the loop's time."""
    alone = processes.call(step.name, rate, step, max(2, epochs // 2))
    seconds, shares = processes.call(loop.name, ours.watched, loop.run)
    with tempfile.TemporaryDirectory() as folder:
        where = stage.project(Path(folder) / "project", shards, stage.training(loop.run.train))
        done = stage.watch_stage(where, "train", "--family", "vae")
    rows, epoch_s = loop.run.reading.manifest().counts["train"], steady(seconds)
    return {
        STEP: alone,
        LOOP: rows / epoch_s,
        STAGE: rows / steady(done.ends),
        "fixed": done.seconds - epochs * epoch_s,
        **shares,
    }


def steady(ends: Sequence[float]) -> float:
    """Seconds an epoch without the first, which warms up, and the last, which waits for its checkpoint."""
    return (ends[-2] - ends[0]) / (len(ends) - 2)


def workers(run: TrainRun, size: Size) -> Table:
    """One and two gloo workers of one core each."""
    batch = run.train.global_batch_size
    ways = {ALONE: (1, batch), STRONG: (2, batch), WEAK: (2, 2 * batch)}
    names = list(ways)
    each = in_turn(names, size.stages, lambda at: scaling.rate(run, *ways[names[at]], epochs=2))
    rows = [
        Row(
            name,
            {
                "images/s": each[name],
                "x 1 worker": each[name] / each[ALONE],
                "of linear": each[name] / each[ALONE] / ways[name][0],
            },
        )
        for name in names
    ]
    return Table(
        "Workers: images a second of our whole loop, gloo",
        f"a core and a torch thread for each worker, so that two workers share the {CORES} cores of this machine, its "
        f"memory and its caches, and send gradients over loopback; fp32, a global batch of {batch} (strong scaling), "
        f"or {batch} a worker (weak scaling); the second epoch of a training, median of {size.stages}",
        rows,
        {"images/s": ",.0f", "x 1 worker": ".2f", "of linear": ".2f"},
    )


def in_turn(names: Sequence[str], rounds: int, measure: Callable[[int], float]) -> dict[str, float]:
    """The median of each over `rounds`, in each of which every one has its turn."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for at, name in enumerate(names):
            found[name].append(measure(at))
    return {name: statistics.median(values) for name, values in found.items()}


def over(value: float | None, of: float | None) -> float | None:
    return None if value is None or of is None else value / of
