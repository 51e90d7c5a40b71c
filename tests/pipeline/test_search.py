"""The sweep: synchronous halving, the same trials and the same outcome however it runs."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipeline import files, runtime
from pipeline.config import ComputeConfig, SearchConfig
from pipeline.errors import UserError
from pipeline.train.loop import train
from pipeline.train.run import TrainRun
from pipeline.train.tracking import MetricLog
from pipeline.train.worker import FAILURE
from pipeline.tune import search as module
from pipeline.tune.search import Trial, plan, search

SPACE = {"beta": [0.5, 1.0, 1.5, 2.0], "latent_dim": [2, 4, 6]}


def config(**changes: Any) -> SearchConfig:
    return SearchConfig(**{"trials": 5, "seed": 0, "scheduler": "halving", "rungs": (1, 3), **changes})


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


class Sweep:
    """A sweep over trials whose figures are given: name -> score after each epoch, or an error instead."""

    def __init__(
        self,
        scores: Mapping[str, Sequence[float] | str],
        monkeypatch: pytest.MonkeyPatch,
        figure: str = "neg_elbo_nats",
    ) -> None:
        self.scores, self.figure = scores, figure
        self.rungs: list[tuple[int, list[str]]] = []
        monkeypatch.setattr(runtime, "cluster", lambda compute: nullcontext())
        monkeypatch.setattr(module, "_run_to", self.run_to)
        monkeypatch.setattr(module, "follow_sweep", lambda *_, **__: nullcontext())

    def run_to(self, trials: Sequence[Trial], epochs: int, compute: ComputeConfig, ray_storage: Path) -> None:
        assert trials, "an experiment without trials"
        self.rungs.append((epochs, [trial.name for trial in trials]))
        for trial in trials:
            trial.directory.mkdir(parents=True, exist_ok=True)
            scores = self.scores[trial.name]
            if isinstance(scores, str):
                files.write_json(trial.directory / FAILURE, {"error": scores})
                continue
            log = MetricLog(trial.directory)
            for epoch in range(len(log.epochs()), epochs):
                log.write(step=epoch, epoch=epoch, samples=0, split="val", values={self.figure: scores[epoch]})


@pytest.fixture
def sweep(
    make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[dict[str, str], list[tuple[int, list[str]]]]]:  # fmt: skip
    """Runs a sweep of five epochs over given scores; returns the status of each trial and who ran to each rung."""

    def run(scores: Mapping[str, Sequence[float] | str], figure: str = "neg_elbo_nats", **changes: Any) -> Any:
        fake = Sweep(scores, monkeypatch, figure)
        settings = config(trials=len(scores), **changes)
        trials = plan(make_run(epochs=5), settings, SPACE, tmp_path)
        search(trials, settings, make_compute(), storage=tmp_path, what="tune")
        return {trial.name: trial.status for trial in trials}, fake.rungs

    return run


A, B, C, D, E = (f"trial-00{number}" for number in range(5))


def test_each_rung_keeps_the_better_half_rounded_up(sweep: Any) -> None:
    status, rungs = sweep(
        {A: [1, 1, 9, 9, 9], B: [2, 2, 2, 2, 2], C: [3, 3, 3, 3, 3], D: [4, 0, 0, 0, 0], E: [5, 0, 0, 0, 0]}
    )
    assert rungs == [(1, [A, B, C, D, E]), (3, [A, B, C]), (5, [B, C])]
    assert status == {A: "stopped", B: "completed", C: "completed", D: "stopped", E: "stopped"}


def test_a_family_without_a_prior_is_judged_by_its_distortion(sweep: Any) -> None:
    status, rungs = sweep({A: [3] * 5, B: [1] * 5, C: [2] * 5, D: [4] * 5}, figure="distortion_nats")
    assert rungs == [(1, [A, B, C, D]), (3, [B, C]), (5, [B])]
    assert status == {A: "stopped", B: "completed", C: "stopped", D: "stopped"}


def test_ties_go_by_name(sweep: Any) -> None:
    status, rungs = sweep({name: [1.0] * 5 for name in (A, B, C, D)})
    assert rungs == [(1, [A, B, C, D]), (3, [A, B]), (5, [A])]
    assert status == {A: "completed", B: "stopped", C: "stopped", D: "stopped"}


def test_without_halving_every_trial_runs_to_the_end(sweep: Any) -> None:
    status, rungs = sweep({A: [1] * 5, B: [2] * 5, C: [3] * 5}, scheduler="none")
    assert rungs == [(5, [A, B, C])]
    assert set(status.values()) == {"completed"}


def test_a_failed_trial_is_named_and_does_not_count_among_those_compared(
    sweep: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    status, rungs = sweep({A: "gradient norm nan", B: [3] * 5, C: [2] * 5, D: [1] * 5})
    assert rungs == [(1, [A, B, C, D]), (3, [D, C]), (5, [D])]
    assert status == {A: "failed", B: "stopped", C: "stopped", D: "completed"}
    assert "tune: trial-000 failed: gradient norm nan\n" in capsys.readouterr().err


def test_a_sweep_in_which_every_trial_fails_says_why(sweep: Any) -> None:
    with pytest.raises(UserError, match=r"^every trial failed; trial-000: gradient norm nan$"):
        sweep({A: "gradient norm nan", B: "gradient norm inf"})


def test_an_empty_sweep_starts_nothing(make_compute: Callable[..., ComputeConfig], tmp_path: Path, sweep: Any) -> None:
    assert sweep({}) == ({}, [])


def test_a_plan_is_the_same_wherever_its_storage_is(make_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    plans = [plan(make_run(), config(), SPACE, tmp_path / name) for name in ("one", "other")]
    names = [[(t.name, t.overrides, t.run.name, t.directory.name) for t in trials] for trials in plans]
    assert names[0] == names[1]
    assert [trial.name for trial in plans[0]] == [A, B, C, D, E]
    assert {trial.directory.parent for trial in plans[0]} == {tmp_path / "one"}


def test_a_trial_is_the_baseline_but_for_its_overrides(make_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    baseline = make_run()
    trials = plan(baseline, config(trials=100), SPACE, tmp_path)
    assert len(trials) == 11
    assert len({trial.run.name for trial in trials} | {baseline.name}) == 12
    for trial in trials:
        assert (trial.run.model.beta, trial.run.model.latent_dim) == tuple(trial.overrides.values())
        assert trial.run.model.network == baseline.model.network
        assert (trial.run.train, trial.run.shards) == (baseline.train, baseline.shards)
        assert (trial.run.data, trial.run.code) == (baseline.data, baseline.code)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Ray's own
@pytest.mark.usefixtures("ray_cluster")
def test_trials_inside_ray_tune_give_the_same_bytes(
    make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig], tmp_path: Path,
    threads: Callable[[int], None],
) -> None:  # fmt: skip
    """Four trials of two epochs: two that do not fit the data fail, and one is stopped, at the first rung."""
    settings = config(trials=4, rungs=(1,))
    space = {"num_codes": [8, 32], "network.downsamples": [1, 4]}
    trials = plan(make_run("vqvae"), settings, space, tmp_path / "sweep")
    search(trials, settings, make_compute(), storage=tmp_path / "sweep", what="tune")
    here: dict[str, list[dict[str, float]]] = {}
    for trial in trials:
        fits = trial.overrides["network.downsamples"] == 1
        assert (trial.status == "failed") is not fits
        if not fits:
            error = json.loads((trial.directory / FAILURE).read_text())["error"]
            assert "network.downsamples: 4 halvings need height and width divisible by 16" in error
            continue
        directory = tmp_path / "here" / trial.name
        for epochs, cores in ((1, 1), (2, 2)):  # four trials share two cores, then one has both
            threads(cores)
            if epochs == 1 or trial.status == "completed":
                train(trial.run, directory, on_epoch=lambda *_: None, checkpoint_every_steps=4, epochs=epochs)
        assert contents(trial.directory) == contents(directory)
        assert trial.epochs == MetricLog(directory).epochs()
        here[trial.status] = trial.epochs
    assert sorted(here) == ["completed", "stopped"]
    assert here["completed"][0]["neg_elbo_nats"] < here["stopped"][0]["neg_elbo_nats"]
    assert not (tmp_path / "sweep" / "ray").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
