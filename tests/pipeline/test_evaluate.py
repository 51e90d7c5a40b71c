"""Figures of a model on a whole split: every image counts once, whatever the batches; the same pictures every time."""

import dataclasses
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import EvaluateConfig
from pipeline.data.loader import Split, open_split
from pipeline.errors import UserError
from pipeline.evaluate.figures import _one_of_each_class, figures
from pipeline.evaluate.metrics import evaluate_model
from pipeline.evaluate.models import open_model, same_model
from pipeline.figures import save_png
from pipeline.train.run import TrainRun
from vae_core.batch import Batch
from vae_core.config import ModelConfig
from vae_core.likelihoods import observe
from vae_core.metrics.likelihood import importance_weighted_nll
from vae_core.models import Model, build_model
from vae_core.models.vae import VAE
from vae_core.noise import Noise
from vae_core.objectives import gaussian_kl

COMMON = {"rows", "neg_elbo_nats", "distortion_nats", "rate_nats", "mse"}
LATENT = {"nll_nats", "nll_standard_error_nats", "nll_samples", "active_units"}
CODES = {"codebook_used_fraction", "codebook_perplexity", "commitment_squared_distance"}
NAMES = {"vae": COMMON | LATENT, "cvae": COMMON | LATENT, "vqvae": COMMON | CODES}


@pytest.fixture(scope="module")
def split(shards: Path) -> Split:
    return open_split(shards, "test")


def config(**changes: int) -> EvaluateConfig:
    return EvaluateConfig(**{"seed": 0, "batch_size": 100, "nll_samples": 4, "figure_images": 10, **changes})


@pytest.fixture(scope="module")
def scores(published: Mapping[str, Path], split: Split) -> Mapping[str, Mapping[str, float]]:
    return {
        family: evaluate_model(open_model(folder), split, config(), what=family) for family, folder in published.items()
    }


def one_by_one(split: Split) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every image [1, C, H, W] in [0, 1], with its label [1]."""
    rows = [np.array([row]) for row in range(len(split))]
    return [
        (torch.from_numpy(split.images(row)).movedim(-1, 1).float() / 255, torch.from_numpy(split.labels(row)))
        for row in rows
    ]


@pytest.mark.parametrize("family", NAMES)
def test_a_family_has_its_figures_and_no_others(family: str, scores: Mapping[str, Mapping[str, float]]) -> None:
    found = scores[family]
    assert set(found) == NAMES[family]
    assert list(found)[:4] == ["rows", "neg_elbo_nats", "distortion_nats", "rate_nats"]
    assert all(math.isfinite(value) for value in found.values())
    assert found["rows"] == 330
    assert found["neg_elbo_nats"] == pytest.approx(found["distortion_nats"] + found["rate_nats"], rel=1e-6)


def test_figures_are_in_their_ranges(scores: Mapping[str, Mapping[str, float]]) -> None:
    for family in ("vae", "cvae"):
        found = scores[family]
        assert found["nll_nats"] < found["neg_elbo_nats"], "more samples give a tighter bound"
        assert 0 < found["nll_standard_error_nats"] < 2
        assert found["nll_samples"] == 4
        assert isinstance(found["active_units"], int)
        assert 0 <= found["active_units"] <= 4
    found = scores["vqvae"]
    assert found["rate_nats"] == pytest.approx(4 * math.log(16), abs=1e-6)
    assert 1 <= found["codebook_perplexity"] <= 16 * found["codebook_used_fraction"] <= 16


def test_the_same_figures_come_twice(
    published: Mapping[str, Path], split: Split, scores: Mapping[str, Mapping[str, float]]
) -> None:
    torch.manual_seed(9)
    assert evaluate_model(open_model(published["cvae"]), split, config(), what="again") == scores["cvae"]
    other = evaluate_model(open_model(published["cvae"]), split, config(seed=1), what="again")
    assert other["nll_nats"] != scores["cvae"]["nll_nats"]
    assert other["nll_nats"] == pytest.approx(scores["cvae"]["nll_nats"], abs=2)


@pytest.mark.parametrize("batch_size", [1, 7, 100, 329, 330, 1000])
def test_codes_are_evaluated_alike_in_any_batches(published: Mapping[str, Path], split: Split, batch_size: int) -> None:
    """A VQ-VAE needs no noise, so only the rounding of sums is left to differ from a plain loop."""
    model = open_model(published["vqvae"])
    found = evaluate_model(model, split, config(batch_size=batch_size), what="codes")
    expected, used = plain_loop(model, split)
    assert found["rows"] == 330
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-6)
    frequency = used[used > 0] / used.sum()
    assert found["codebook_used_fraction"] == pytest.approx(len(frequency) / 16)
    assert found["codebook_perplexity"] == pytest.approx(math.exp(-(frequency * np.log(frequency)).sum()), abs=1e-5)


@torch.no_grad()
def plain_loop(model: Model, split: Split) -> tuple[dict[str, float], np.ndarray]:
    """Figures of a VQ-VAE from single images, in float64, and how often each code occurs."""
    errors, distortions, used = [], [], np.zeros(16)
    sigma = model.head.log_sigma.double().exp()
    for x, _ in one_by_one(split):
        codes = model.quantizer.nearest(model.encode(x))
        used += np.bincount(codes.flatten().numpy(), minlength=16)
        pixels = torch.distributions.Normal(model.decode(codes).mean.double(), sigma)
        errors.append((pixels.mean - x.double()).square().mean().item())
        distortions.append(-pixels.log_prob(x.double()).sum().item())
    return {"mse": float(np.mean(errors)), "distortion_nats": float(np.mean(distortions))}, used


@pytest.mark.parametrize("batch_size", [1, 7, 329, 1000])
def test_latents_are_evaluated_alike_in_any_batches(
    models: Mapping[str, ModelConfig], split: Split, batch_size: int
) -> None:
    """Rate, error and active units of a model that sees intensities need no noise."""
    model = build_model(dataclasses.replace(models["cvae"], likelihood="gaussian"), split.spec, seed=3).eval()
    assert isinstance(model, VAE)
    with torch.no_grad():
        model.to_posterior.weight[:2] *= 10  # two of four units carry something
        model.to_posterior.weight[2:4] *= 0
        posteriors = [(model.encode(x, label), x, label) for x, label in one_by_one(split)]
        rates = [gaussian_kl(posterior.mean, posterior.log_var).item() for posterior, _, _ in posteriors]
        errors = [
            (model.decode(posterior.mean, label).mean - x).square().mean().item() for posterior, x, label in posteriors
        ]
        means = torch.cat([posterior.mean for posterior, _, _ in posteriors])
    found = evaluate_model(model, split, config(batch_size=batch_size, nll_samples=1), what="latents")
    assert found["rate_nats"] == pytest.approx(float(np.mean(rates)), abs=2e-6)
    assert found["mse"] == pytest.approx(float(np.mean(errors)), abs=2e-6)
    assert found["active_units"] == int((means.var(0, correction=0) > 0.01).sum()) == 2


def test_the_likelihood_has_the_standard_error_of_its_images(published: Mapping[str, Path], split: Split) -> None:
    model = open_model(published["vae"])
    assert isinstance(model, VAE)
    rows = np.arange(len(split))
    images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(split.images(rows), -1, 1)))
    batch = Batch(images, None, torch.ones(len(rows)), torch.arange(len(rows)), len(rows))
    noise = Noise.of(batch, seed=0, scope="test", step=0)
    nll = importance_weighted_nll(model, observe(images, "bernoulli", noise), None, noise=noise, samples=4).numpy()
    found = evaluate_model(model, split, config(batch_size=330), what="likelihood")
    assert found["nll_nats"] == pytest.approx(nll.mean(), abs=1e-5)
    assert found["nll_standard_error_nats"] == pytest.approx(nll.std() / math.sqrt(330), abs=1e-5)


def png(split: Split, model: Model, settings: EvaluateConfig, folder: Path) -> dict[str, bytes]:
    for name, figure in figures(model, split, settings).items():
        save_png(figure, folder / f"{name}.png")
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("family", "third"), [("vae", "samples"), ("cvae", "samples"), ("vqvae", "codes")])
def test_pictures_are_the_same_bytes_every_time(
    published: Mapping[str, Path], split: Split, tmp_path: Path, family: str, third: str
) -> None:
    drawn = []
    for name in ("one", "other"):
        torch.manual_seed(len(drawn))
        drawn.append(png(split, open_model(published[family]), config(), tmp_path / name))
    assert drawn[0] == drawn[1]
    assert sorted(drawn[0]) == sorted(["reconstructions", "interpolation", third])
    for picture in drawn[0].values():
        assert picture.startswith(b"\x89PNG")
        assert b"matplotlib" not in picture
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
        assert min(pixels.shape) > 50
        assert len(np.unique(pixels)) > 20, "an empty picture"


def test_pictures_show_an_image_of_each_class(published: Mapping[str, Path], split: Split) -> None:
    rows = _one_of_each_class(split, 20)
    assert split.labels(rows).tolist() == [*range(10), *range(10)]


def test_a_missing_or_damaged_model_names_the_remedy(published: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json: .*; restore it with `dvc checkout`, or make it again"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_bytes((published["vae"] / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((published["vae"] / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model.safetensors: .*; restore it with `dvc checkout`"):
        open_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((published["cvae"] / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"model.safetensors: "):
        open_model(tmp_path)


def test_models_are_the_same_by_weights_and_configuration(
    published: Mapping[str, Path], make_run: Callable[..., TrainRun]
) -> None:
    assert same_model(published["vae"], published["vae"])
    assert not same_model(published["vae"], published["cvae"])
