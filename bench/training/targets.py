"""What the project asks of its training, from the tables."""

from bench.report import Table, Target
from bench.training.systems import BF16, COMPILED, FP32, LOOP, name_of
from bench.training.tables import SHIPPED, TARGET_NATS, Around


def of_rates(table: Table) -> list[Target]:
    rows = {row.name: row.figures for row in table.rows}
    wanted = [(name_of(LOOP, FP32), 1.0), (name_of(LOOP, BF16), 1.8), (name_of(LOOP, COMPILED), 1.8)]
    return [
        Target(f"{name}: x the hand-written loop in fp32", least, figure)
        for name, least in wanted
        if name in rows and (figure := rows[name]["x hand-written"]) is not None
    ]


def of_descents(table: Table) -> list[Target]:
    rows = {row.name: row.figures["x pythae"] for row in table.rows}
    wanted = [name for name in (*(name_of(LOOP, how) for how in (FP32, BF16, COMPILED)), SHIPPED) if name in rows]
    return [
        Target(f"{name}: time to {TARGET_NATS:g} nats, x pythae's", None, figure, below=0.6)
        for name in wanted
        if (figure := rows[name]) is not None
    ]


def of_stage(around: Around) -> list[Target]:
    return [
        Target("Ray Train: an epoch is longer than in one process, %", None, 100 * around.ray, below=2),
        Target("all that is not our step: % of an epoch of the stage", None, 100 * around.beside, below=5),
        Target("a train stage beside its epochs, s", None, around.fixed_s, below=15),
    ]
