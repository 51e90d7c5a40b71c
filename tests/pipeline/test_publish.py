"""What a finished run and a finished sweep leave: the weights as they were trained, tables, one picture."""

import csv
import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from pipeline import files
from pipeline.train import checkpoints
from pipeline.train.loop import train
from pipeline.train.publish import publish_curves, publish_model
from pipeline.train.run import TrainRun
from pipeline.train.tracking import MetricLog, curves
from pipeline.tune.publish import publish_sweep, rate_distortion
from pipeline.tune.search import Trial
from vae_core.serialize import load_model

OVERRIDES = {"beta": 1.0, "latent_dim": 4}


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


FAMILIES = ("autoencoder", "vae", "cvae", "iwae", "vqvae", "vqvae2", "categorical", "hierarchical")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_has_the_weights_of_the_last_checkpoint(
    family: str, trained: Mapping[str, Path], published: Mapping[str, Path], make_run: Callable[..., TrainRun]
) -> None:
    newest = checkpoints.latest(trained[family] / "checkpoints")
    assert newest is not None
    files_of = contents(published[family])
    assert sorted(files_of) == ["config.json", "metrics.json", "model.safetensors"]
    assert files_of["model.safetensors"] == (newest.path / "model.safetensors").read_bytes()
    described = files.read_json(published[family] / "config.json")
    assert described["lineage"] == make_run(family).lineage
    there = {"channels": 1, "height": 8, "width": 8, "num_classes": 10}
    assert described["data"] == {**there, "attributes": 0, "embedding": 0}
    model = load_model(published[family])
    assert model.config == make_run(family).model
    weights = load(files_of["model.safetensors"])
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())


def test_a_model_comes_with_its_validation_figures(trained: Mapping[str, Path], published: Mapping[str, Path]) -> None:
    figures = files.read_json(published["vae"] / "metrics.json")
    assert figures == {"epochs": 2, "val": MetricLog(trained["vae"]).epochs()[-1]}


def test_an_unfinished_run_is_not_published(make_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    train(make_run(), tmp_path / "run", on_epoch=lambda *_: None, checkpoint_every_steps=100, epochs=1)
    with pytest.raises(RuntimeError, match="the run is not finished"):
        publish_model(make_run(), tmp_path / "run", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_curves_are_those_of_the_stream(trained: Mapping[str, Path], tmp_path: Path) -> None:
    publish_curves(trained["vae"], tmp_path / "vae" / "curves.tsv")
    assert (tmp_path / "vae" / "curves.tsv").read_text() == curves(MetricLog(trained["vae"]).rows())


@pytest.fixture
def trial(trained: Mapping[str, Path], make_run: Callable[..., TrainRun]) -> Callable[..., Trial]:
    """A trial with a given last score, whose run is the finished one."""

    def make(number: int, score: float | None, status: Any = "completed", **overrides: Any) -> Trial:
        figures = {} if score is None else {"neg_elbo_nats": score, "distortion_nats": score - 3, "rate_nats": 3.0}
        epochs = [figures] * 2 if figures else []
        values = {**OVERRIDES, "beta": float(number), **overrides}
        return Trial(f"trial-{number:03d}", values, make_run("vae"), trained["vae"], status, epochs)

    return make


@pytest.fixture
def baseline(published: Mapping[str, Path], tmp_path: Path) -> Path:
    """A baseline's model, with a score of 50 nats, and other weights than those of the trials."""
    folder = Path(shutil.copytree(published["cvae"], tmp_path / "baseline"))
    val = {"neg_elbo_nats": 50.0, "distortion_nats": 40.0, "rate_nats": 10.0}
    files.write_json(folder / "metrics.json", {"epochs": 2, "val": val})
    return folder


def publish(trials: list[Trial], baseline: Path, out: Path) -> tuple[str, list[dict[str, str]]]:
    best = publish_sweep(trials, baseline, OVERRIDES, out / "models" / "best", out / "results" / "vae")
    table = (out / "results" / "vae" / "trials.csv").read_text()
    return best, list(csv.DictReader(io.StringIO(table)))


def test_the_best_trial_is_kept_with_its_weights(
    trial: Any, baseline: Path, tmp_path: Path, published: Mapping[str, Path]
) -> None:
    best, rows = publish([trial(0, 49.5), trial(1, 49.0), trial(2, 51.0)], baseline, tmp_path)
    assert best == "trial-001"
    assert contents(tmp_path / "models" / "best") == contents(published["vae"])
    assert [(row["trial"], row["best"]) for row in rows] == [
        ("baseline", "false"), ("trial-000", "false"), ("trial-001", "true"), ("trial-002", "false")]  # fmt: skip


@pytest.mark.parametrize("score", [50.0, 50.5])
def test_the_baseline_wins_where_no_trial_is_better(trial: Any, baseline: Path, tmp_path: Path, score: float) -> None:
    best, _ = publish([trial(0, score)], baseline, tmp_path)
    assert best == "baseline"
    assert contents(tmp_path / "models" / "best") == contents(baseline)


def test_of_equal_trials_the_first_wins(trial: Any, baseline: Path, tmp_path: Path) -> None:
    assert publish([trial(0, 49.0), trial(1, 49.0)], baseline, tmp_path)[0] == "trial-000"


def test_failed_and_stopped_trials_never_win(trial: Any, baseline: Path, tmp_path: Path) -> None:
    trials = [trial(0, 1.0, "failed"), trial(1, 1.0, "stopped"), trial(2, None, "failed")]
    best, rows = publish(trials, baseline, tmp_path)
    assert best == "baseline"
    assert [row["status"] for row in rows] == ["baseline", "failed", "stopped", "failed"]
    assert [row["val_neg_elbo_nats"] for row in rows] == ["50.000000", "1.000000", "1.000000", ""]


def test_the_table_has_the_swept_values_and_the_figures(trial: Any, baseline: Path, tmp_path: Path) -> None:
    _, rows = publish([trial(7, 49.0, latent_dim=16)], baseline, tmp_path)
    assert rows == [
        {"trial": "baseline", "status": "baseline", "epochs": "2", "beta": "1.0", "latent_dim": "4",
         "val_neg_elbo_nats": "50.000000", "val_distortion_nats": "40.000000", "val_rate_nats": "10.000000",
         "best": "false"},
        {"trial": "trial-007", "status": "completed", "epochs": "2", "beta": "7.0", "latent_dim": "16",
         "val_neg_elbo_nats": "49.000000", "val_distortion_nats": "46.000000", "val_rate_nats": "3.000000",
         "best": "true"},
    ]  # fmt: skip


def test_publishing_again_gives_the_same_bytes(trial: Any, baseline: Path, tmp_path: Path) -> None:
    trials = [trial(0, 49.0), trial(1, 52.0, "stopped"), trial(2, None, "failed")]
    results = []
    for name in ("one", "other"):
        publish(trials, baseline, tmp_path / name)
        results.append(contents(tmp_path / name / "results" / "vae"))
    assert results[0] == results[1]
    assert sorted(results[0]) == ["rate_distortion.png", "trials.csv"]
    assert results[0]["rate_distortion.png"].startswith(b"\x89PNG")


def test_a_sweep_without_trials_keeps_the_baseline(baseline: Path, tmp_path: Path) -> None:
    best, rows = publish([], baseline, tmp_path)
    assert best == "baseline"
    assert contents(tmp_path / "models" / "best") == contents(baseline)
    assert [row["trial"] for row in rows] == ["baseline"]


def test_the_winner_is_described_by_its_own_values(
    trial: Any, baseline: Path, tmp_path: Path, make_run: Callable[..., TrainRun]
) -> None:
    model = replace(make_run("vae").model, latent_dim=3)
    run = make_run(model)
    train(run, tmp_path / "run", on_epoch=lambda *_: None, checkpoint_every_steps=100)
    winner = replace(trial(0, 1.0, latent_dim=3), run=run, directory=tmp_path / "run")
    publish([winner], baseline, tmp_path)
    assert load_model(tmp_path / "models" / "best").config == model
    assert files.read_json(tmp_path / "models" / "best" / "config.json")["lineage"] == run.lineage


@pytest.fixture
def without_prior(trained: Mapping[str, Path], make_run: Callable[..., TrainRun]) -> Callable[..., Trial]:
    """A trial of a family that has a distortion alone, with its last score."""

    def make(number: int, score: float, status: Any = "completed") -> Trial:
        run, epochs = make_run("autoencoder"), [{"distortion_nats": score}] * 2
        return Trial(f"trial-{number:03d}", {"latent_dim": number}, run, trained["autoencoder"], status, epochs)

    return make


def test_a_family_without_a_prior_is_judged_by_its_distortion(
    without_prior: Any, trained: Mapping[str, Path], published: Mapping[str, Path], tmp_path: Path
) -> None:
    given = files.read_json(published["autoencoder"] / "metrics.json")["val"]
    assert set(given) == {"distortion_nats"}
    trials = [without_prior(0, given["distortion_nats"] - 1), without_prior(1, given["distortion_nats"] - 2),
              without_prior(2, 0.0, "stopped")]  # fmt: skip
    best = publish_sweep(trials, published["autoencoder"], {"latent_dim": 4}, tmp_path / "best", tmp_path / "results")
    assert best == "trial-001"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results" / "trials.csv").read_text())))
    assert [row["val_distortion_nats"] for row in rows][2:] == [f"{given['distortion_nats'] - 2:.6f}", "0.000000"]
    assert {row["val_neg_elbo_nats"] for row in rows} == {row["val_rate_nats"] for row in rows} == {""}
    assert (tmp_path / "results" / "rate_distortion.png").read_bytes().startswith(b"\x89PNG")
    table = curves(MetricLog(trained["autoencoder"]).rows()).splitlines()
    epoch = dict(zip(table[0].split("\t"), table[-1].split("\t"), strict=True))
    assert epoch["val_distortion_nats"] == f"{given['distortion_nats']:.6f}"
    assert {epoch[f"{split}_{name}_nats"] for split in ("train", "val") for name in ("neg_elbo", "rate")} == {"nan"}


def test_trials_without_a_rate_are_drawn_side_by_side() -> None:
    rows = [{"trial": f"trial-{n}", "status": "completed", "val_distortion_nats": 40.0 - n} for n in range(3)]
    axes = rate_distortion(rows, "trial-1").axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[0, 40], [1, 39], [2, 38]]
    assert axes.get_xlabel() == "trial (this family has no rate)"
