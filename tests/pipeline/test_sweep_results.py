"""What a finished sweep leaves: the best model, tables and pictures; the same bytes for the same sweep."""

import csv
import io
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import files
from pipeline.train.config import ComputeConfig
from pipeline.train.folders import open_folder
from pipeline.train.loop import train
from pipeline.train.run import TrainRun
from pipeline.tune.config import Range, SearchConfig
from pipeline.tune.figures import importance_bars, parallel_coordinates, rate_distortion
from pipeline.tune.objectives import Objectives, undominated
from pipeline.tune.publish import publish_sweep
from pipeline.tune.results import Candidate, best_of, candidates, pareto
from pipeline.tune.space import draw
from pipeline.tune.trials import Segment, Sweep, Trial
from vae_core.serialize import load_model

SPACE: dict[str, Any] = {"beta": (0.5, 1.0, 2.0), "latent_dim": (2, 4, 8)}
ELBO = Objectives(("neg_elbo_nats",), ("min",))
KNOWN = {"neg_elbo_nats": 50.0, "distortion_nats": 40.0, "rate_nats": 10.0}
RESULTS = ["best.json", "importance.json", "importance.png", "parallel_coordinates.png", "population.json",
           "rate_distortion.png", "trials.csv"]  # fmt: skip


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def make_sweep(make_run: Callable[..., TrainRun], make_compute: Callable[..., ComputeConfig]) -> Callable[..., Sweep]:
    def make(family: str = "vae", **changes: Any) -> Sweep:
        search = SearchConfig(trials=4, seed=0, scheduler="halving", rungs=(1,))
        parts = {"space": SPACE, "objectives": ELBO, "known": KNOWN, "compute": make_compute(), **changes}
        return Sweep(family, make_run(family), search, **parts)

    return make


@pytest.fixture
def trial(trained: Mapping[str, Path], make_run: Callable[..., TrainRun]) -> Callable[..., Trial]:
    """A trial with a given last score, whose run is the finished one."""

    def make(number: int, score: float | None, status: Any = "completed", **overrides: Any) -> Trial:
        figures = {} if score is None else {"neg_elbo_nats": score, "distortion_nats": score - 3, "rate_nats": 3.0}
        values = {"beta": float(number), "latent_dim": 4, **overrides}
        epochs = [figures] * 2 if figures else []
        return Trial(f"trial-{number:03d}", values, make_run("vae"), open_folder(trained["vae"]), status, epochs)

    return make


@pytest.fixture
def baseline(published: Mapping[str, Path], tmp_path: Path) -> Path:
    """A baseline's model, with other weights than those of the trials."""
    return Path(shutil.copytree(published["cvae"], tmp_path / "baseline"))


def publish(sweep: Sweep, trials: list[Trial], baseline: Path, out: Path) -> tuple[str, list[dict[str, str]]]:
    best = publish_sweep(sweep, trials, baseline, out / "best", out / "results")
    return best, list(csv.DictReader(io.StringIO((out / "results" / "trials.csv").read_text())))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_best_trial_is_kept_with_its_weights(
    make_sweep: Any, trial: Any, baseline: Path, tmp_path: Path, published: Mapping[str, Path]
) -> None:
    trials = [trial(0, 49.5), trial(1, 49.0), trial(2, 51.0)]
    best, rows = publish(make_sweep(), trials, baseline, tmp_path)
    assert best == "trial-001"
    assert contents(tmp_path / "best") == contents(published["vae"])
    assert [(row["trial"], row["best"]) for row in rows] == [
        ("baseline", "false"), ("trial-000", "false"), ("trial-001", "true"), ("trial-002", "false")]  # fmt: skip


@pytest.mark.parametrize("score", [50.0, 50.5])
def test_the_baseline_wins_where_no_trial_is_better(
    make_sweep: Any, trial: Any, baseline: Path, tmp_path: Path, score: float
) -> None:
    best, _ = publish(make_sweep(), [trial(0, score)], baseline, tmp_path)
    assert best == "baseline"
    assert contents(tmp_path / "best") == contents(baseline)


def test_of_equal_trials_the_first_wins(make_sweep: Any, trial: Any, baseline: Path, tmp_path: Path) -> None:
    assert publish(make_sweep(), [trial(0, 49.0), trial(1, 49.0)], baseline, tmp_path)[0] == "trial-000"


def test_failed_and_stopped_trials_never_win(make_sweep: Any, trial: Any, baseline: Path, tmp_path: Path) -> None:
    trials = [trial(0, 1.0, "failed"), trial(1, 1.0, "stopped"), trial(2, None, "failed")]
    best, rows = publish(make_sweep(), trials, baseline, tmp_path)
    assert best == "baseline"
    assert [row["status"] for row in rows] == ["baseline", "failed", "stopped", "failed"]
    assert [row["val_neg_elbo_nats"] for row in rows] == ["50.000000", "1.000000", "1.000000", ""]
    assert [row["pareto"] for row in rows] == ["true", "false", "false", "false"]


def test_the_table_has_the_swept_values_and_the_figures(
    make_sweep: Any, trial: Any, baseline: Path, tmp_path: Path
) -> None:
    _, rows = publish(make_sweep(), [trial(7, 49.0, latent_dim=16)], baseline, tmp_path)
    assert rows == [
        {"trial": "baseline", "status": "baseline", "epochs": "2", "beta": "1.0", "latent_dim": "4",
         "val_neg_elbo_nats": "50.000000", "val_distortion_nats": "40.000000", "val_rate_nats": "10.000000",
         "metric": "50.000000", "best": "false", "pareto": "true"},
        {"trial": "trial-007", "status": "completed", "epochs": "2", "beta": "7.0", "latent_dim": "16",
         "val_neg_elbo_nats": "49.000000", "val_distortion_nats": "46.000000", "val_rate_nats": "3.000000",
         "metric": "49.000000", "best": "true", "pareto": "true"},
    ]  # fmt: skip


def test_publishing_again_gives_the_same_bytes(make_sweep: Any, trial: Any, baseline: Path, tmp_path: Path) -> None:
    values = draw(SPACE, "random", count=9, seed=0) * 2
    trials = [trial(i, 45.0 + i % 5, "stopped" if i % 2 else "completed", **each) for i, each in enumerate(values)]
    trials += [trial(18, None, "failed")]
    results = []
    for name in ("one", "other"):
        publish(make_sweep(), trials, baseline, tmp_path / name)
        results.append(contents(tmp_path / name / "results"))
    assert results[0] == results[1]
    assert sorted(results[0]) == RESULTS
    for name in RESULTS:
        assert name.endswith(".png") == results[0][name].startswith(b"\x89PNG")
        assert str(tmp_path).encode() not in results[0][name]


def test_a_sweep_without_trials_keeps_the_baseline(make_sweep: Any, baseline: Path, tmp_path: Path) -> None:
    best, rows = publish(make_sweep(space={}), [], baseline, tmp_path)
    assert best == "baseline"
    assert [row["trial"] for row in rows] == ["baseline"]
    assert sorted(contents(tmp_path / "results")) == RESULTS


def test_the_winner_is_described_by_its_own_values(
    make_sweep: Any, trial: Any, baseline: Path, tmp_path: Path, make_run: Callable[..., TrainRun]
) -> None:
    model = replace(make_run("vae").model, latent_dim=3)
    run = make_run(model)
    train(run, tmp_path / "run", on_epoch=lambda *_: None, checkpoint_every_steps=100)
    winner = replace(trial(0, 1.0, latent_dim=3), run=run, folder=open_folder(tmp_path / "run"))
    publish(make_sweep(), [winner], baseline, tmp_path)
    assert load_model(tmp_path / "best").config == model
    assert files.read_json(tmp_path / "best" / "config.json")["lineage"] == run.lineage


def test_several_objectives_have_a_best_each_and_a_front(
    make_sweep: Any, trial: Any, baseline: Path, tmp_path: Path
) -> None:
    both = Objectives(("neg_elbo_nats", "ssim"), ("min", "max"))

    def scored(number: int, elbo: float, ssim: float) -> Trial:
        made: Trial = trial(number, elbo)
        made.epochs = [{**figures, "ssim": ssim} for figures in made.epochs]
        return made

    trials = [scored(0, 48.0, 0.5), scored(1, 49.0, 0.9), scored(2, 49.5, 0.4), scored(3, 48.0, 0.6)]
    sweep = make_sweep(objectives=both, known={**KNOWN, "ssim": 0.3})
    best, rows = publish(sweep, trials, baseline, tmp_path)
    assert best == "trial-003"
    assert [row["pareto"] for row in rows] == ["false", "false", "true", "false", "true"]
    assert [row["val_ssim"] for row in rows] == [f"{x:.6f}" for x in (0.3, 0.5, 0.9, 0.4, 0.6)]
    assert [row["metric"] for row in rows] == [row["val_neg_elbo_nats"] for row in rows]
    found = files.read_json(tmp_path / "results" / "best.json")
    assert {name: each["trial"] for name, each in found.items()} == {"neg_elbo_nats": "trial-003", "ssim": "trial-001"}
    assert found["ssim"]["values"] == {"beta": 1.0, "latent_dim": 4}
    assert found["ssim"]["figures"]["ssim"] == 0.9


def test_a_population_says_what_its_members_were_trained_with(
    make_sweep: Any, trial: Any, baseline: Path, tmp_path: Path
) -> None:
    member = trial(0, 49.0)
    member.segments = [Segment(1, {"beta": 1.0}, member.folder), Segment(2, {"beta": 2.0}, member.folder, "trial-003")]
    publish(make_sweep(), [member], baseline, tmp_path)
    assert files.read_json(tmp_path / "results" / "population.json") == {
        "trial-000": [{"epochs": 1, "begun_from": None, "values": {"beta": 1.0}},
                      {"epochs": 2, "begun_from": "trial-003", "values": {"beta": 2.0}}]}  # fmt: skip


def test_the_key_that_decides_is_the_important_one(make_sweep: Any, trial: Any, baseline: Path, tmp_path: Path) -> None:
    space = {"beta": Range(low=0.1, high=4.0), "latent_dim": (2, 4, 8)}
    values = draw(space, "sobol", count=24, seed=0)
    trials = [trial(i, 40 + (each["beta"] - 1) ** 2, **each) for i, each in enumerate(values)]
    publish(make_sweep(space=space), trials, baseline, tmp_path)
    found = files.read_json(tmp_path / "results" / "importance.json")
    assert (found["after_epochs"], found["trials"]) == (2, 24)
    shares = found["objectives"]["neg_elbo_nats"]
    assert list(shares) == ["beta", "latent_dim"]
    assert shares["beta"] > 0.8
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)


def test_a_long_list_takes_no_longer(make_sweep: Any, trial: Any, baseline: Path, tmp_path: Path) -> None:
    """Of the 40 values as categories Optuna would look at 2^40 combinations."""
    space = {"beta": tuple(0.1 * i for i in range(1, 41)), "latent_dim": (2, 4), "condition": ("none",)}
    values = draw(space, "random", count=60, seed=0)
    trials = [trial(i, 40 + (each["beta"] - 1) ** 2, **each) for i, each in enumerate(values)]
    publish(make_sweep(space=space), trials, baseline, tmp_path)
    shares = files.read_json(tmp_path / "results" / "importance.json")["objectives"]["neg_elbo_nats"]
    assert list(shares) == ["beta", "latent_dim", "condition"]
    assert shares["beta"] > 0.8


def test_few_trials_have_no_importance(make_sweep: Any, trial: Any, baseline: Path, tmp_path: Path) -> None:
    publish(make_sweep(), [trial(0, 49.0), trial(1, 48.0)], baseline, tmp_path)
    found = files.read_json(tmp_path / "results" / "importance.json")
    assert found == {
        "method": "fANOVA",
        "after_epochs": 2,
        "trials": 2,
        "why": "too few trials: 2, at least 10 are needed",
    }


def test_a_family_without_a_prior_has_no_rate(
    make_sweep: Any, published: Mapping[str, Path], trained: Mapping[str, Path], make_run: Any, tmp_path: Path
) -> None:
    known = {"distortion_nats": 20.0}
    sweep = make_sweep("autoencoder", space={"latent_dim": (2, 4)}, known=known,
                       objectives=Objectives(("distortion_nats",), ("min",)))  # fmt: skip
    trials = [
        Trial(f"trial-{i:03d}", {"latent_dim": i}, make_run("autoencoder"), open_folder(trained["autoencoder"]), status,
              [{"distortion_nats": score}] * 2)
        for i, (score, status) in enumerate([(19.0, "completed"), (18.0, "completed"), (0.0, "stopped")])
    ]  # fmt: skip
    best, rows = publish(sweep, trials, published["autoencoder"], tmp_path)
    assert best == "trial-001"
    assert {row["val_neg_elbo_nats"] for row in rows} == {row["val_rate_nats"] for row in rows} == {""}
    assert [row["pareto"] for row in rows] == ["false", "false", "true", "false"]
    axes = rate_distortion(candidates(sweep, trials), best).axes[0]
    assert axes.get_xlabel() == "trial (this family has no rate)"


def candidate(number: int, status: str = "completed", **values: Any) -> Candidate:
    rate, distortion = 20.0 + number, 80.0 - number + number**2 / 20
    figures = {"neg_elbo_nats": rate + distortion, "rate_nats": rate, "distortion_nats": distortion}
    return Candidate(f"trial-{number:03d}", status, 2, {"beta": 1.0, "latent_dim": 4, **values}, figures)


def test_the_front_of_rate_and_distortion_has_those_that_nothing_beats() -> None:
    found = [candidate(n, "stopped" if n == 3 else "completed") for n in range(8)]
    found.append(replace(found[2], name="worse", figures={**found[2].figures, "rate_nats": 30.0}))
    assert pareto(found, ELBO) == [f"trial-{n:03d}" for n in (0, 1, 2, 4, 5, 6, 7)]
    assert best_of(found, ELBO).name == "trial-000"


def test_no_one_beats_an_equal() -> None:
    assert undominated({"a": (1, 2), "b": (1, 2), "c": (2, 2), "d": (0, 3)}) == ["a", "b", "d"]


@pytest.mark.parametrize("count", [1, 4, 60])
def test_every_candidate_is_a_line_across_every_axis(count: int) -> None:
    space = {**SPACE, "train.learning_rate.peak": Range(low=1e-4, high=1e-2, log=True), "activation": ("relu", "tanh")}
    values = draw(space, "sobol", count=count, seed=0)
    found = [candidate(i % 9, "stopped" if i % 3 else "completed", **each) for i, each in enumerate(values)]
    axes = parallel_coordinates(found, space, ELBO, found[0].name).axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata()) > 100]
    assert len(lines) == count
    for line in lines:
        assert min(line.get_xdata()) == 0
        assert max(line.get_xdata()) == 4
        assert np.all((np.asarray(line.get_ydata()) >= -1e-9) & (np.asarray(line.get_ydata()) <= 1 + 1e-9))
    assert [label.get_text() for label in axes.get_xticklabels()] == [*space, "neg_elbo_nats"]
    texts = {text.get_text() for text in axes.texts}
    assert {"relu", "tanh", "0.5", "0.001"} <= texts


def test_far_worse_figures_do_not_squeeze_the_others() -> None:
    found = [replace(candidate(n), figures={"neg_elbo_nats": value}) for n, value in enumerate([90, 91, 92, 93, 900])]
    axes = parallel_coordinates(found, {}, ELBO, "trial-000").axes[0]
    texts = {text.get_text() for text in axes.texts}
    assert "93 and worse" in texts


def test_an_importance_that_is_missing_says_why() -> None:
    (text,) = importance_bars({}, "too few trials").axes[0].texts
    assert text.get_text() == "too few trials"
    assert len(importance_bars({"a": {"x": 0.9, "y": 0.1}, "b": {"y": 0.7, "x": 0.3}}).axes[0].patches) == 4


def test_json_holds_finite_numbers_only(make_sweep: Any, trial: Any, baseline: Path, tmp_path: Path) -> None:
    publish(make_sweep(), [trial(0, 49.0)], baseline, tmp_path)
    written = list((tmp_path / "results").glob("*.json"))
    assert written
    for path in written:
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
