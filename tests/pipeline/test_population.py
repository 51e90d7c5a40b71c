"""Population-based training: who takes over from whom is drawn by seed, and every segment answers for itself."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainers import Here

from pipeline.errors import UserError
from pipeline.train.config import ComputeConfig
from pipeline.train.folders import DiskFolder
from pipeline.train.loop import train
from pipeline.train.run import TrainRun
from pipeline.train.storage import finish, read_json, write_json
from pipeline.train.tracking import LOG, MetricLog
from pipeline.tune.config import Range, SearchConfig
from pipeline.tune.objectives import Objectives
from pipeline.tune.population import moved
from pipeline.tune.search import search
from pipeline.tune.trial import CHECKPOINTS, Job, _take_over
from pipeline.tune.trials import FAILED, Sweep, Trial

SPACE = {"beta": Range(low=0.1, high=4.0), "train.learning_rate.peak": Range(low=1e-3, high=1e-2, log=True)}


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def make_sweep(make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig]) -> Callable[..., Sweep]:
    """A population of eight around the small VAE, over three epochs with a rung after each."""

    def make(space: Any = SPACE, storage: Path | None = None, **changes: Any) -> Sweep:
        values = {"trials": 8, "seed": 0, "scheduler": "pbt", "rungs": (1, 2), **changes}
        compute = make_compute(**({"storage": str(storage)} if storage else {}))
        objectives, known = Objectives(("neg_elbo_nats",), ("min",)), {"neg_elbo_nats": 30.0}
        return Sweep("vae", make_run(epochs=3), SearchConfig(**values), space, objectives, known, compute)

    return make


class Scripted(Here):
    """The figure of a trial is its number; those in `fail` diverge in the segment that ends after so many epochs."""

    def __init__(self, fail: dict[str, int]) -> None:
        super().__init__()
        self.fail = fail

    def carry_out(self, job: Job) -> None:
        if self.fail.get(job.name) == job.stops[-1]:
            write_json(job.folder, FAILED, {"error": "not finite"})
            return
        score = float(job.name.removeprefix("trial-"))
        for epoch in range(job.stops[-1]):
            MetricLog(job.folder).write(
                step=epoch, epoch=epoch, samples=0, split="val", values={"neg_elbo_nats": score}
            )
        finish(job.folder, {})


def plain(trials: Sequence[Trial]) -> list[Any]:
    """All but where they are."""
    return [
        (trial.name, trial.status, trial.overrides, trial.epochs, trial.run.name,
         [(segment.epochs, segment.overrides, segment.begun_from) for segment in trial.segments])
        for trial in trials
    ]  # fmt: skip


def names(count: int) -> list[str]:
    return [f"trial-{number:03d}" for number in range(count)]


def test_the_worst_quarter_takes_over_from_the_best(make_sweep: Any) -> None:
    trials = search(make_sweep(), Scripted({}))
    assert [trial.status for trial in trials] == ["completed"] * 8
    for trial in trials[:6]:
        assert [segment.begun_from for segment in trial.segments] == [None, None, None]
        assert trial.is_one_run
    for trial in trials[6:]:
        first, second, third = trial.segments
        assert first.begun_from is None
        assert {second.begun_from, third.begun_from} <= {"trial-000", "trial-001"}
        source = next(other for other in trials if other.name == second.begun_from)
        assert second.overrides != first.overrides
        for key, value in second.overrides.items():
            low, high = SPACE[key].low, SPACE[key].high
            assert low <= value <= high
            assert value != source.segments[0].overrides[key]
        assert not trial.is_one_run
        assert trial.run.model.beta == third.overrides["beta"]


def test_choices_depend_on_the_seed_alone(make_sweep: Any, tmp_path: Path) -> None:
    one, same, other = (
        plain(search(make_sweep(storage=tmp_path / str(i), seed=seed), Scripted({})))
        for i, seed in enumerate((0, 0, 1))
    )
    assert one == same != other


def test_a_member_that_failed_takes_over_too(make_sweep: Any) -> None:
    trials = search(make_sweep(trials=4), Scripted({"trial-001": 1, "trial-002": 3}))
    assert [trial.status for trial in trials] == ["completed", "completed", "failed", "completed"]
    assert trials[1].segments[1].begun_from == "trial-000"
    assert trials[2].reason == "not finite"


def test_a_killed_population_goes_on_and_ends_alike(make_sweep: Any, tmp_path: Path) -> None:
    options = {"trials": 4}
    whole = search(make_sweep(storage=tmp_path / "whole", **options), all_of := Here())
    assert len(all_of.done) == 12
    parts = tmp_path / "parts"
    done: list[tuple[str, int]] = []
    for jobs in (2, 3, 5):
        killed = Here(dies_after=jobs)
        with pytest.raises(KeyboardInterrupt):
            search(make_sweep(storage=parts, **options), killed)
        done += killed.done
    trials = search(make_sweep(storage=parts, **options), last := Here())
    assert done + last.done == all_of.done
    assert plain(trials) == plain(whole)
    for one, other in zip(trials, whole, strict=True):
        assert Path(one.folder.location).name == Path(other.folder.location).name
        for name in ("metrics.jsonl", *one.folder.names("checkpoints/")):
            assert one.folder.read(name) == other.folder.read(name)
    again = Here()
    assert search(make_sweep(storage=parts, **options), again) == trials
    assert again.done == []


def test_a_segment_goes_on_from_the_weights_that_it_took_over(make_sweep: Any, tmp_path: Path) -> None:
    trials = search(make_sweep(trials=4), Here())
    trial = next(trial for trial in trials if not trial.is_one_run)
    number = next(i for i, segment in enumerate(trial.segments) if segment.begun_from)
    source = next(other for other in trials if other.name == trial.segments[number].begun_from)
    before, after = (MetricLog(trial.segments[number].folder).epochs(),
                     MetricLog(source.segments[number - 1].folder).epochs())  # fmt: skip
    assert before[:number] == after[:number]
    about = read_json(trial.segments[number].folder, "run.json")
    assert about is not None
    assert about["begun_from"] == Path(source.segments[number - 1].folder.location).name
    sweep = read_json(make_sweep(trials=4).folder, "run.json")
    assert sweep is not None
    assert set(sweep["trials"]) == {Path(s.folder.location).name for t in trials for s in t.segments}


def test_a_member_that_never_changed_is_what_train_gives(make_sweep: Any, tmp_path: Path) -> None:
    trials = search(make_sweep(trials=4), Here())
    trial = next(trial for trial in trials if trial.is_one_run)
    train(trial.run, tmp_path / "train", on_epoch=lambda *_: None, checkpoint_every_steps=4)
    assert MetricLog(tmp_path / "train").epochs() == trial.epochs
    newest = trial.folder.names("checkpoints/")[-1]
    assert (tmp_path / "train" / newest).exists()


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("latent_dim", (2, 4)),
        ("train.global_batch_size", (64, 128)),
        ("train.epochs", (2, 3)),
        ("likelihood", ("bernoulli", "gaussian")),
    ],
)
def test_values_that_do_not_fit_the_weights_are_refused_before_training(make_sweep: Any, key: str, values: Any) -> None:
    trainer = Scripted({})
    with pytest.raises(UserError, match=rf"^params.yaml: tune.spaces.vae.{key}: with scheduler: pbt weights go"):
        search(make_sweep(space={"beta": (0.5, 1.0), key: values}), trainer)
    assert trainer.done == []


class Chosen:
    """Stands in for a generator: gives the numbers that it was made with."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0)


@given(st.floats(0, 1, exclude_max=True), st.booleans())
def test_values_move_to_a_neighbour_and_stay_within_the_space(place: float, up: bool) -> None:
    upward = 0.0 if up else 0.9
    steps = (1, 2, 4, 8)
    for i, value in enumerate(steps):
        assert moved(steps, value, Chosen(0.9, place, upward)) == steps[min(max(i + (1 if up else -1), 0), 3)]
        assert moved(steps, value, Chosen(0.1, place, upward)) in steps
    for values in SPACE.values():
        for value in (values.low, values.high):
            assert values.low <= moved(values, value, Chosen(0.9, place, upward)) <= values.high
    assert moved(SPACE["beta"], 1.0, Chosen(0.9, place, upward)) == (1.2 if up else 0.8)
    assert moved(Range(low=2, high=64, log=True), 3, Chosen(0.9, place, upward)) == (4 if up else 2)


@pytest.mark.parametrize("copied", [0, 1, 2])
def test_taking_over_that_was_broken_off_is_finished(copied: int, tmp_path: Path) -> None:
    source, target = DiskFolder(tmp_path / "source"), DiskFolder(tmp_path / "target")
    files = {f"{CHECKPOINTS}/step-{step:09d}-{'0' * 16}.safetensors": b"%d" % step for step in (4, 8)}
    for name, data in {LOG: b"rows of both\n", **files}.items():
        source.write(name, data)
    for name in list(files)[:copied]:
        target.write(name, files[name])
    _take_over(source, target)
    assert {name: target.read(name) for name in target.names(CHECKPOINTS)} == files
    assert target.names(LOG) == ([LOG] if copied < 2 else [])
