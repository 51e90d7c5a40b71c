"""The benches of training and of sweeps: what their figures are made of."""

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import train as bench_train
from bench import tune as bench_tune
from bench.report import Row, Table, Target
from bench.training import handwritten, ours, pythae_trainer, stage, targets
from bench.training.clock import Clock, Enough, crossing
from bench.training.given import base_run
from bench.training.peers import layers, neg_elbo
from bench.training.processes import descent, rate
from bench.training.systems import BF16, FP32, HAND, LOOP, PYTHAE, STEP, System, name_of, systems
from bench.training.tables import steady
from bench.tuning import profile, sweeps, tables
from pipeline.config import load_params
from pipeline.errors import UserError
from pipeline.train.run import TrainRun
from vae_core.config import MLPConfig, VAEConfig

ROOT = Path(__file__).parents[2]
SMALL = VAEConfig(kind="vae", latent_dim=3, network=MLPConfig(kind="mlp", hidden=(16, 8), activation="silu"))


@pytest.fixture
def run(shards: Path) -> TrainRun:
    """Two epochs of a small model on the digits."""
    return replace(base_run(load_params(ROOT / "params.yaml"), shards, 2), model=SMALL)


@pytest.fixture
def ticks() -> Iterator[int]:
    """A clock that goes on by a second at each look."""
    return count()


def test_clock_stands_still_while_it_evaluates(ticks: Iterator[int]) -> None:
    clock = Clock(2, target=0.0, now=lambda: float(next(ticks)))

    def slow() -> float:
        for _ in range(100):
            next(ticks)
        return 1.0

    clock(slow)
    with pytest.raises(Enough):
        clock(slow)
    assert clock.seconds == [1.0, 2.0]
    assert clock.figures == [1.0, 1.0]


def test_clock_ends_a_training_at_the_target() -> None:
    clock = Clock(9, target=5.0)
    clock(lambda: 6.0)
    with pytest.raises(Enough):
        clock(lambda: 5.0)


def test_clock_without_a_target_evaluates_nothing() -> None:
    clock = Clock(9)
    clock(lambda: pytest.fail("evaluated"))
    assert clock.figures == []


def test_time_to_a_target_is_on_the_line_between_two_epochs() -> None:
    assert crossing([10.0, 20.0], [110.0, 90.0], 100.0) == 15.0
    assert crossing([10.0, 20.0], [90.0, 80.0], 100.0) == 10.0
    assert crossing([10.0, 20.0], [120.0, 110.0], 100.0) is None


def test_steady_epoch_leaves_out_the_first_and_the_last() -> None:
    assert steady([5.0, 7.0, 9.0, 20.0]) == 2.0


def test_every_system_learns_and_is_judged_by_the_same_function(run: TrainRun) -> None:
    run = replace(run, train=replace(run.train, epochs=4, learning_rate=0.01))
    for system in systems(run, compiled=False):
        if not system.missing:
            seconds, figures = descent(system, 4, target=0.0)
            assert len(seconds) == len(figures) == 4, system.name
            assert seconds == sorted(seconds)
            assert figures[-1] < figures[0] < 60, system.name


def test_peers_weights_give_in_our_model_what_they_give_in_theirs(run: TrainRun) -> None:
    torch.manual_seed(0)
    net = handwritten.Net(*layers(run))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    split = run.open("val")
    pixels = torch.from_numpy(split.images(np.arange(len(split)))).flatten(1) / 255
    with torch.no_grad():
        own = statistics.mean(float(net(torch.bernoulli(pixels))) for _ in range(50))
    assert neg_elbo(run, net.parameters()) == pytest.approx(own, rel=0.01)


def test_pythae_has_the_same_layers(run: TrainRun) -> None:
    if pythae_trainer.MISSING:
        pytest.skip("pythae is not installed")
    model = pythae_trainer.build(run)
    theirs = sorted(tuple(parameter.shape) for parameter in model.parameters())
    net = handwritten.Net(*layers(run))
    assert theirs == sorted(tuple(parameter.shape) for parameter in net.parameters())


def test_rate_counts_the_images_of_the_epochs_after_the_first(run: TrainRun) -> None:
    def fit(run: TrainRun, clock: Clock) -> None:
        for end in (5.0, 7.0):
            clock.seconds.append(end)

    rows = run.reading.manifest().counts["train"]
    assert rate(System("two seconds an epoch", fit, run), 2) == rows / 2


def test_another_model_than_the_peers_is_refused(run: TrainRun) -> None:
    with pytest.raises(UserError, match="plain VAE"):
        layers(replace(run, model=replace(SMALL, beta=2.0)))


def test_loop_records_how_its_time_is_shared(run: TrainRun) -> None:
    seconds, shares = ours.watched(run)
    assert len(seconds) == 2
    assert set(shares) == set(ours.BESIDE)
    assert all(0 < share < 1 for share in shares.values())


def test_shares_weigh_epochs_by_their_time() -> None:
    log = '{"seconds": 3, "evaluation": 0.1, "checkpoint": 0}\n{"seconds": 1, "evaluation": 0.5, "checkpoint": 0.2}\n'
    assert ours.shares(log) == pytest.approx({"evaluation": 0.2, "checkpoint": 0.05})


def test_project_has_the_changes_and_the_data(tmp_path: Path, shards: Path, run: TrainRun) -> None:
    where = stage.project(tmp_path / "with space", shards, stage.training(run.train), ROOT / "params.yaml")
    params = load_params(where / "params.yaml")
    assert params.train == run.train
    assert params.families == ("vae",)
    assert (where / "data" / "shards" / "manifest.json").is_file()


def test_stage_that_fails_shows_what_it_said(tmp_path: Path, shards: Path) -> None:
    where = stage.project(tmp_path / "project", shards, {}, ROOT / "params.yaml")
    with pytest.raises(RuntimeError, match="--family nobody"):
        stage.run_stage(where, "train", "--family", "nobody")


def test_targets_of_systems_that_were_not_measured_are_left_out() -> None:
    rows = [Row(name_of(LOOP, FP32), {"x hand-written": 1.2}), Row(name_of(LOOP, BF16), {"x hand-written": None})]
    found = targets.of_rates(Table("", "", rows, {}))
    assert found == [Target("our whole loop, fp32: x the hand-written loop in fp32", 1.0, 1.2)]
    assert found[0].met


def test_systems_are_named_once_and_pythae_stands_among_them(run: TrainRun) -> None:
    names = [system.name for system in systems(run, compiled=True)]
    assert len(names) == len(set(names)) == 10
    assert {name_of(HAND, FP32), name_of(PYTHAE, FP32), name_of(STEP, BF16)} < set(names)


def test_parts_of_a_trial_add_up_to_the_life_of_its_process() -> None:
    marks = {"created": 1.0, "entered": 3.0, "ends": [7.0, 9.0], "reports": [0.5, 0.25], "done": 10.0}
    parts = profile.phases(marks)
    assert sum(parts.values()) == marks["done"] - marks["created"]
    assert parts["other epochs"] == 1.5
    assert profile.medians([marks, marks]) == parts


def test_time_of_our_trials_is_from_the_first_file_to_the_last(tmp_path: Path) -> None:
    for number, seconds in enumerate((3, 5, 4)):
        folder = tmp_path / f"vae-trial-{number}"
        folder.mkdir()
        for name, at in (("run.json", 100), ("finished.json", 100 + seconds)):
            (folder / name).touch()
            os.utime(folder / name, (at, at))
    assert profile.of_ours(tmp_path) == 4


def test_trials_of_the_table_become_runs(tmp_path: Path, run: TrainRun) -> None:
    table = tmp_path / "results" / "tune" / "vae" / "trials.csv"
    table.parent.mkdir(parents=True)
    table.write_text("trial,beta,latent_dim,val_neg_elbo_nats\nbaseline,1.0,20,1.5\ntrial-000,0.25,30,2.5\n")
    rows = sweeps.drawn(tmp_path)
    assert [row["trial"] for row in rows] == ["trial-000"]
    assert sweeps.run_of(run, rows[0]).model == replace(SMALL, beta=0.25, latent_dim=30)
    assert sweeps.alike(rows, [{"figures": {"neg_elbo_nats": 2.5}}]) == 1
    assert sweeps.alike(rows, [{"figures": {"neg_elbo_nats": 2.6}}]) == 0


def test_table_of_parts_leaves_nothing_out() -> None:
    marks = {"created": 0.0, "entered": 2.0, "ends": [5.0, 7.0], "reports": [0.5, 0.5], "done": 8.0}
    table = tables.parts([marks, marks], 6.0, {tables.OURS: 10.0, tables.PLAIN: 12.0})
    rows = {row.name: row.figures for row in table.rows}
    for name, inside in ((tables.OURS, 6.0), (tables.PLAIN, 8.0)):
        assert rows["in the trial"][name] == inside
        assert rows["in the trial"][name] + rows["beside it"][name] == rows["in all"][name]


@pytest.mark.parametrize("bench", [bench_train, bench_tune])
def test_missing_data_are_named_with_their_remedy(
    bench: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert bench.main([]) == 1  # type: ignore[attr-defined]
    assert "run `dvc repro shard` first" in capsys.readouterr().err


def test_quick_run_prints_its_tables_and_writes_nothing(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    command = [sys.executable, "-m", "bench.train", "--quick", "--only", "rates"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Trained: images a second" in done.stdout
    assert "our whole loop, bf16" in done.stdout
    assert not (tmp_path / "bench").exists()
