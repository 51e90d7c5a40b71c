"""Which trials of a sweep become experiments, under which names, with what in them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.train.config import ComputeConfig
from pipeline.train.run import TrainRun
from pipeline.train.storage import open_folder
from pipeline.tune.config import SearchConfig
from pipeline.tune.experiments import chosen, experiment_of, publish_experiments
from pipeline.tune.objectives import Objectives
from pipeline.tune.trials import Segment, Sweep, Trial

SPACE = {"beta": (0.5, 1.0), "train.seed": (1, 2)}


@pytest.fixture
def sweep(make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig]) -> Sweep:
    search = SearchConfig(trials=5, seed=0, scheduler="halving", rungs=(1,))
    objectives = Objectives(("neg_elbo_nats",), ("min",))
    return Sweep("vae", make_run(epochs=3), search, SPACE, objectives, {"neg_elbo_nats": 9.0}, make_compute())


@pytest.fixture
def trials(sweep: Sweep, tmp_path: Path) -> Mapping[str, Trial]:
    def make(number: int, status: Any, score: float, epochs: int = 3) -> Trial:
        name = f"trial-{number:03d}"
        figures = [{"neg_elbo_nats": score}] * epochs
        overrides = {"beta": 0.5, "train.seed": number}
        return Trial(name, overrides, sweep.baseline, open_folder(tmp_path / name), status, figures)

    made = [
        make(0, "completed", 5.0),
        make(1, "stopped", 1.0, epochs=1),
        make(2, "completed", 4.0),
        make(3, "failed", 0.0, epochs=0),
        make(4, "completed", 6.0),
    ]
    return {trial.name: trial for trial in made}


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (2, [2, 0]), (9, [2, 0, 4]), (None, [2, 0, 4, 1])], ids=["0", "2", "9", "all"]
)
def test_the_best_that_were_trained_to_their_end_and_on_request_the_others(
    count: int | None, expected: list[int], sweep: Sweep, trials: Mapping[str, Trial]
) -> None:
    names = [trial.name for trial in chosen(sweep, list(trials.values()), count)]
    assert names == [f"trial-{number:03d}" for number in expected]


def test_name_and_values_say_where_it_comes_from(sweep: Sweep, trials: Mapping[str, Trial]) -> None:
    experiment = experiment_of(sweep, list(trials.values()), trials["trial-002"])
    fingerprint = sweep.name.removeprefix("vae-sweep-")
    assert experiment.name == f"vae-{fingerprint[:6]}-trial-002"
    assert experiment.values == {"models.vae.beta": 0.5, "train.seed": 2}
    assert experiment.message == f"trial-002 of {sweep.name}: beta=0.5, train.seed=2"
    assert experiment.write is not None


def test_a_trial_that_gives_no_model_of_its_values_has_its_parameters_alone(
    sweep: Sweep, trials: Mapping[str, Trial]
) -> None:
    stopped = experiment_of(sweep, list(trials.values()), trials["trial-001"])
    assert stopped.write is None
    assert stopped.message.endswith("\n\nParameters only: stopped after 1 of 3 epochs.")
    changed = trials["trial-000"]
    changed.segments = [Segment(3, {"beta": 0.5}, changed.folder, begun_from="trial-004")]
    experiment = experiment_of(sweep, list(trials.values()), changed)
    assert experiment.write is None
    assert experiment.message.endswith("\n\nParameters only: its values changed while it was trained.")


def test_where_there_is_no_git_the_sweep_goes_on_with_one_line(
    sweep: Sweep, trials: Mapping[str, Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    publish_experiments(sweep, list(trials.values()), count=3)
    said = "".join(capsys.readouterr())
    assert said.startswith("tune vae: trials not published as DVC experiments: `git rev-parse`: not a git repository")
    assert said.count("\n") == 1


def test_nothing_to_publish_says_nothing(
    sweep: Sweep, trials: Mapping[str, Trial], capsys: pytest.CaptureFixture[str]
) -> None:
    publish_experiments(sweep, list(trials.values()), count=0)
    assert "".join(capsys.readouterr()) == ""
