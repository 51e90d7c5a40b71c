"""What a finished run leaves: the weights as they were trained, their figures, and its curves."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from safetensors.torch import load

from pipeline import files
from pipeline.errors import UserError
from pipeline.train import checkpoints
from pipeline.train.loop import train
from pipeline.train.publish import publish_history, publish_model
from pipeline.train.run import TrainRun
from pipeline.train.tracking import MetricLog, curves
from vae_core.serialize import load_model


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
    assert files_of["model.safetensors"] == newest.weights
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
    with pytest.raises(UserError, match="1 of 2 epochs are there, so the run is not finished"):
        publish_model(make_run(), tmp_path / "run", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_curves_and_metrics_are_those_of_the_stream(trained: Mapping[str, Path], tmp_path: Path) -> None:
    publish_history(trained["vae"], "vae", tmp_path / "vae")
    log = MetricLog(trained["vae"])
    assert (tmp_path / "vae" / "curves.tsv").read_text() == curves(log.rows())
    assert files.read_json(tmp_path / "vae" / "metrics.json")["val"]["vae"] == pytest.approx(log.epochs()[-1], abs=1e-6)


def test_a_family_without_a_prior_has_a_distortion_alone(
    trained: Mapping[str, Path], published: Mapping[str, Path]
) -> None:
    given = files.read_json(published["autoencoder"] / "metrics.json")["val"]
    assert set(given) == {"distortion_nats"}
    table = curves(MetricLog(trained["autoencoder"]).rows()).splitlines()
    epoch = dict(zip(table[0].split("\t"), table[-1].split("\t"), strict=True))
    assert epoch["val_distortion_nats"] == f"{given['distortion_nats']:.6f}"
    assert {epoch[f"{split}_{name}_nats"] for split in ("train", "val") for name in ("neg_elbo", "rate")} == {"nan"}
