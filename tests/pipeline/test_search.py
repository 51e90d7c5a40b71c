"""The sweep: who goes on, who is trained again, and that it is the same whatever interrupts it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trainers import Racing

from pipeline.errors import Diverged, UserError
from pipeline.train.config import ComputeConfig
from pipeline.train.loop import train
from pipeline.train.run import TrainRun
from pipeline.train.storage import finish, is_finished, read_json, write_json
from pipeline.train.tracking import MetricLog
from pipeline.tune.config import Range, SearchConfig
from pipeline.tune.objectives import Objectives
from pipeline.tune.search import search
from pipeline.tune.trial import Job
from pipeline.tune.trials import FAILED, Sweep, Trial

SPACE = {"beta": (0.5, 1.0, 1.5, 2.0), "latent_dim": (2, 3, 5)}
ELBO = Objectives(("neg_elbo_nats",), ("min",))
KNOWN = {"neg_elbo_nats": 30.0, "distortion_nats": 25.0, "rate_nats": 5.0}
A, B, C, D, E = (f"trial-00{number}" for number in range(5))


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def make_sweep(make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig]) -> Callable[..., Sweep]:
    """A sweep around the small VAE; keywords change the search, or a part of the sweep."""

    def make(epochs: int = 5, run: TrainRun | None = None, **changes: Any) -> Sweep:
        own = {name: changes.pop(name) for name in ("space", "objectives", "measures", "known") if name in changes}
        compute = make_compute(**changes.pop("compute", {}))
        values = {"trials": 5, "seed": 0, "scheduler": "halving", "rungs": (1, 3), **changes}
        parts = {"space": SPACE, "objectives": ELBO, "known": KNOWN, **own}
        return Sweep("vae", run or make_run(epochs=epochs), SearchConfig(**values), compute=compute, **parts)

    return make


class Scripted:
    """Trials whose figures are given: name -> score after each epoch, or why it fails."""

    def __init__(self, scores: Mapping[str, Sequence[float] | str], figure: str = "neg_elbo_nats") -> None:
        self.scores, self.figure = scores, figure
        self.rungs: list[tuple[int, list[str]]] = []

    def advance(self, jobs: Sequence[Job], *, what: str) -> None:
        if jobs:
            self.rungs.append((jobs[0].stops[-1], [job.name for job in jobs]))
        for job in jobs:
            self._train(job)

    def race(self, jobs: Sequence[Job], *, figure: str, mode: str, what: str) -> dict[str, int]:
        self.advance(jobs, what=what)
        return {job.name: job.stops[-1] if i % 2 else job.stops[0] for i, job in enumerate(jobs)}

    def _train(self, job: Job) -> None:
        scores = self.scores[job.name]
        if isinstance(scores, str):
            write_json(job.folder, FAILED, {"error": scores})
            return
        log = MetricLog(job.folder)
        for epoch in range(len(log.epochs()), job.stops[-1]):
            log.write(step=epoch, epoch=epoch, samples=0, split="val", values={self.figure: scores[epoch]})
        if job.stops[-1] == job.ends:
            finish(job.folder, {})


def status(trials: Sequence[Trial]) -> dict[str, str]:
    return {trial.name: trial.status for trial in trials}


def test_each_rung_keeps_the_better_half_rounded_up(make_sweep: Any) -> None:
    trainer = Scripted(
        {A: [1, 1, 9, 9, 9], B: [2, 2, 2, 2, 2], C: [3, 3, 3, 3, 3], D: [4, 0, 0, 0, 0], E: [5, 0, 0, 0, 0]}
    )
    trials = search(make_sweep(), trainer)
    assert trainer.rungs == [(1, [A, B, C, D, E]), (3, [A, B, C]), (5, [B, C])]
    assert status(trials) == {A: "stopped", B: "completed", C: "completed", D: "stopped", E: "stopped"}
    assert [len(trial.epochs) for trial in trials] == [3, 5, 5, 1, 1]


def test_a_figure_that_is_better_when_greater_keeps_the_greatest(make_sweep: Any) -> None:
    trainer = Scripted({A: [1] * 5, B: [2] * 5, C: [3] * 5, D: [4] * 5}, figure="ssim")
    trials = search(make_sweep(trials=4, objectives=Objectives(("ssim",), ("max",)), known={"ssim": 0.0}), trainer)
    assert trainer.rungs == [(1, [A, B, C, D]), (3, [C, D]), (5, [D])]
    assert status(trials) == {A: "stopped", B: "stopped", C: "stopped", D: "completed"}


def test_ties_go_by_name(make_sweep: Any) -> None:
    trainer = Scripted({name: [1.0] * 5 for name in (A, B, C, D)})
    trials = search(make_sweep(trials=4), trainer)
    assert trainer.rungs == [(1, [A, B, C, D]), (3, [A, B]), (5, [A])]
    assert status(trials) == {A: "completed", B: "stopped", C: "stopped", D: "stopped"}


def test_without_a_scheduler_every_trial_runs_to_the_end(make_sweep: Any) -> None:
    trainer = Scripted({A: [1] * 5, B: [2] * 5, C: [3] * 5})
    trials = search(make_sweep(trials=3, scheduler="none"), trainer)
    assert trainer.rungs == [(5, [A, B, C])]
    assert set(status(trials).values()) == {"completed"}


def test_a_failed_trial_is_named_and_does_not_count_among_those_compared(
    make_sweep: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Scripted({A: "gradient norm nan", B: [3] * 5, C: [2] * 5, D: [1] * 5})
    trials = search(make_sweep(trials=4), trainer)
    assert trainer.rungs == [(1, [A, B, C, D]), (3, [C, D]), (5, [D])]
    assert status(trials) == {A: "failed", B: "stopped", C: "stopped", D: "completed"}
    assert "tune vae: trial-000 failed: gradient norm nan\n" in capsys.readouterr().err


def test_a_sweep_in_which_every_trial_fails_says_why(make_sweep: Any) -> None:
    with pytest.raises(Diverged, match=r"^every trial failed; trial-000: gradient norm nan$"):
        search(make_sweep(trials=2), Scripted({A: "gradient norm nan", B: "gradient norm inf"}))


def test_an_empty_sweep_trains_nothing(make_sweep: Any) -> None:
    trainer = Scripted({})
    assert search(make_sweep(trials=0), trainer) == []
    assert search(make_sweep(space={}), trainer) == []
    assert trainer.rungs == []


def test_of_several_objectives_those_that_nothing_beats_go_on(make_sweep: Any) -> None:
    """By rate and distortion: A and C beat B, D is worst of all, but C leads in the first objective."""
    points = {A: (9.0, 1.0), B: (9.0, 2.0), C: (1.0, 9.0), D: (10.0, 10.0)}

    class Two(Scripted):
        def _train(self, job: Job) -> None:
            rate, distortion = points[job.name]
            values = {"rate_nats": rate, "distortion_nats": distortion}
            for epoch in range(job.stops[-1]):
                MetricLog(job.folder).write(step=epoch, epoch=epoch, samples=0, split="val", values=values)
            finish(job.folder, {})

    both = Objectives(("rate_nats", "distortion_nats"), ("min", "min"))
    trials = search(make_sweep(trials=4, rungs=(1,), objectives=both), Two({}))
    assert status(trials) == {A: "completed", B: "stopped", C: "completed", D: "stopped"}


def test_a_trial_is_the_baseline_but_for_its_values(make_sweep: Any) -> None:
    space = {**SPACE, "train.learning_rate.peak": Range(low=1e-3, high=1e-2, log=True)}
    sweep = make_sweep(trials=9, scheduler="none", space=space)
    trials = search(sweep, Scripted({f"trial-{i:03d}": [1.0] * 5 for i in range(9)}))
    assert len({trial.run.name for trial in trials} | {sweep.baseline.name}) == 10
    for trial in trials:
        model, values = trial.run.model, trial.run.train
        assert (model.beta, model.latent_dim, values.learning_rate.peak) == tuple(trial.overrides.values())
        assert model.network == sweep.baseline.model.network
        assert replace(values, learning_rate=sweep.baseline.train.learning_rate) == sweep.baseline.train
        assert (trial.run.data, trial.run.code) == (sweep.baseline.data, sweep.baseline.code)


def test_the_baselines_own_combination_is_no_trial_and_keeps_its_number(make_sweep: Any) -> None:
    space = {"beta": (0.5, 1.0, 2.0)}
    trainer = Scripted({A: [1.0] * 5, C: [2.0] * 5})
    trials = search(make_sweep(kind="grid", scheduler="none", space=space), trainer)
    assert {trial.name: trial.overrides["beta"] for trial in trials} == {A: 0.5, C: 2.0}


def test_a_trial_that_cannot_be_built_is_refused_before_any_is_trained(make_sweep: Any, make_run: Any) -> None:
    trainer = Scripted({})
    space = {"num_codes": (8, 32), "network.downsamples": (1, 4)}
    sweep = make_sweep(run=make_run("vqvae", epochs=5), space=space, kind="grid", trials=4)
    message = (
        r"^params.yaml: tune.spaces.vae: trial-001 \(num_codes: 8, network.downsamples: 4\) cannot be built: .*"
        "4 halvings need height and width divisible by 16.*; leave such values out of the space$"
    )
    with pytest.raises(UserError, match=message):
        search(sweep, trainer)
    assert trainer.rungs == []


def test_where_a_trial_lives_depends_on_its_run_and_its_share_of_the_machine(make_sweep: Any) -> None:
    def names(**changes: Any) -> list[str]:
        trials = search(make_sweep(trials=2, **changes), Scripted({A: [1.0] * 9, B: [2.0] * 9}))
        return [Path(trial.folder.location).name for trial in trials]

    first = names()
    assert all(name.startswith("vae-trial-") for name in first)
    assert names(rungs=(2,)) == names(scheduler="none") == names(kind="random") == first
    assert names(compute={"trial_cpus": 0.5}) == first
    for changes in ({"compute": {"trial_cpus": 2}}, {"compute": {"trial_workers": 2}}, {"epochs": 6}):
        assert not set(names(**changes)) & set(first)


SMALL = {"trials": 4, "rungs": (1,), "epochs": 2}


def test_a_finished_sweep_answers_without_training(make_sweep: Any) -> None:
    first = Racing()
    before = search(make_sweep(**SMALL), first)
    assert len(first.done) == 6
    again = Racing()
    after = search(make_sweep(**SMALL), again)
    assert again.done == []
    assert before == after


@pytest.mark.parametrize("jobs", [0, 1, 3, 5])
def test_a_killed_sweep_goes_on_and_ends_alike(make_sweep: Any, tmp_path: Path, jobs: int) -> None:
    whole = search(make_sweep(**SMALL, compute={"storage": str(tmp_path / "whole")}), Racing())
    killed, rest = Racing(dies_after=jobs), Racing()
    with pytest.raises(KeyboardInterrupt):
        search(make_sweep(**SMALL), killed)
    parts = search(make_sweep(**SMALL), rest)
    done = killed.done + rest.done
    assert done[:4] == [(name, 1) for name in (A, B, C, D)]
    assert [epochs for _, epochs in done[4:]] == [2, 2]
    for one, other in zip(whole, parts, strict=True):
        assert replace(one, folder=other.folder) == other
        assert contents(one) == contents(other)


def test_a_sweep_with_more_trials_trains_only_the_new_ones(make_sweep: Any) -> None:
    search(make_sweep(trials=3, scheduler="none", epochs=2), Racing())
    more = Racing()
    trials = search(make_sweep(trials=5, scheduler="none", epochs=2), more)
    assert more.done == [(D, 2), (E, 2)]
    assert len(trials) == 5


def test_trials_are_compared_at_the_rung_however_far_they_are(make_sweep: Any) -> None:
    """Without halving all went to the end; halving afterwards decides by what they were at its rungs."""
    apart = make_sweep(**SMALL)
    alone = search(replace(apart, compute=replace(apart.compute, storage=f"{apart.compute.storage}/alone")), Racing())
    search(make_sweep(**{**SMALL, "scheduler": "none"}), Racing())
    trainer = Racing()
    trials = search(make_sweep(**SMALL), trainer)
    assert trainer.done == []
    assert [(trial.status, trial.epochs) for trial in trials] == [(trial.status, trial.epochs) for trial in alone]
    assert sorted(len(trial.epochs) for trial in trials) == [1, 1, 2, 2]


def test_a_trial_whose_checkpoint_is_gone_is_trained_again(make_sweep: Any) -> None:
    trials = search(make_sweep(trials=2, scheduler="none", epochs=1), Racing())
    trials[0].folder.remove(*trials[0].folder.names("checkpoints/"))
    again = Racing()
    assert search(make_sweep(trials=2, scheduler="none", epochs=1), again) == trials
    assert again.done == [(A, 1)]
    assert is_finished(trials[0].folder)


def test_a_diverged_trial_stays_failed_with_its_reason(make_sweep: Any) -> None:
    space = {"train.learning_rate.peak": (1e-3, 1e30)}
    sweep = make_sweep(kind="grid", scheduler="none", epochs=1, trials=2, space=space)
    trials = search(sweep, Racing())
    assert status(trials) == {A: "completed", B: "failed"}
    assert "lower train.learning_rate" in trials[1].reason
    again = Racing()
    assert search(sweep, again) == trials
    assert again.done == []


def test_a_trial_gives_what_train_gives(make_sweep: Any, tmp_path: Path) -> None:
    trial, *_ = search(make_sweep(trials=1, epochs=2), Racing())
    train(trial.run, tmp_path / "train", on_epoch=lambda *_: None, checkpoint_every_steps=4)
    assert MetricLog(tmp_path / "train").epochs() == trial.epochs
    names = {path.name for path in (tmp_path / "train" / "checkpoints").iterdir()}
    assert names == {Path(name).name for name in trial.folder.names("checkpoints/")}  # which name their content


def test_the_store_says_what_a_sweep_and_its_trials_are(make_sweep: Any) -> None:
    sweep = make_sweep(trials=2, epochs=1, scheduler="none")
    trials = search(sweep, Racing())
    about = read_json(sweep.folder, "run.json")
    assert about is not None
    assert (about["kind"], about["family"]) == ("sweep", "vae")
    assert about["trials"] == [Path(trial.folder.location).name for trial in trials]
    for trial in trials:
        known = read_json(trial.folder, "run.json")
        assert known is not None
        assert (known["kind"], known["params"], known["model"]["beta"]) == (
            "trial", trial.run.params, trial.overrides["beta"])  # fmt: skip


def test_tpe_suggests_from_what_earlier_trials_gave_and_repeats_exactly(make_sweep: Any) -> None:
    space = {"beta": Range(low=0.1, high=4.0), "latent_dim": Range(low=2, high=6)}
    options = {"kind": "tpe", "batch": 2, "trials": 6, "epochs": 1, "scheduler": "none", "space": space}
    killed, rest = Racing(dies_after=3), Racing()
    with pytest.raises(KeyboardInterrupt):
        search(make_sweep(**options), killed)
    trials = search(make_sweep(**options), rest)
    assert [name for name, _ in killed.done + rest.done] == [f"trial-{i:03d}" for i in range(6)]
    assert len({tuple(trial.overrides.values()) for trial in trials}) == 6
    longer = search(make_sweep(**{**options, "trials": 8}), last := Racing())
    assert longer[:6] == trials
    assert len(last.done) == 2


def test_a_race_is_decided_once(make_sweep: Any) -> None:
    options = {"scheduler": "asha", "trials": 4}
    trainer = Scripted({name: [1.0] * 5 for name in (A, B, C, D)})
    trials = search(make_sweep(**options), trainer)
    assert status(trials) == {A: "stopped", B: "completed", C: "stopped", D: "completed"}
    assert [len(trial.epochs) for trial in trials] == [1, 5, 1, 5]
    again = Scripted({})
    assert search(make_sweep(**options), again) == trials
    assert again.rungs == []


def contents(trial: Trial) -> dict[str, bytes]:
    names = [name for name in trial.folder.names() if name.startswith(("checkpoints/", "metrics"))]
    return {name: trial.folder.read(name) for name in names}
