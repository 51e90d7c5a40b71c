"""Figures that a sweep is judged by: known by name before any model is trained, and the same as in the evaluation."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import EvaluateConfig
from pipeline.data.loader import Split, open_split
from pipeline.errors import UserError
from pipeline.evaluate import measures, reading
from pipeline.evaluate.disentanglement import SCORES, disentanglement_scores
from pipeline.evaluate.metrics import evaluate_model, figure_names
from pipeline.evaluate.seen import batches
from pipeline.evaluate.validation import UNCOMPARED, check_names, direction, reported, validation_figures
from pipeline.report.vocabulary import METRICS
from vae_core.config import ModelConfig
from vae_core.config.priors import PixelCNNConfig
from vae_core.metrics.features import FeatureClassifier
from vae_core.models import CodeModel, Model, build_model
from vae_core.models.gaussian import GaussianModel
from vae_core.priors import CodePrior, build_prior

FAMILIES = ("autoencoder", "vae", "cvae", "vqvae", "iwae", "vqvae2", "categorical", "hierarchical")


@pytest.fixture(scope="module")
def train(shards: Path) -> Split:
    return open_split(shards, "train")


@pytest.fixture(scope="module")
def val(shards: Path) -> Split:
    return open_split(shards, "val")


@pytest.fixture(scope="module")
def classifier(val: Split) -> FeatureClassifier:
    return FeatureClassifier(val.spec).eval().requires_grad_(False)


def config(**changes: Any) -> EvaluateConfig:
    values: dict[str, Any] = {"seed": 0, "batch_size": 100, "nll_samples": 2, "figure_images": 10, "probe_images": 200}
    return EvaluateConfig(**{**values, "refined_images": 2, "refine_steps": 2, "annealed_images": 2,
                             "annealed_steps": 2, "coded_images": 3, **changes})  # fmt: skip


def prior_of(model: Model) -> CodePrior | None:
    if not isinstance(model, CodeModel):
        return None
    return build_prior(PixelCNNConfig(channels=4, layers=1), model.grids, model.num_codes, model.condition_dim).eval()


@pytest.fixture(scope="module")
def whole(
    models: Mapping[str, ModelConfig], train: Split, val: Split, classifier: FeatureClassifier
) -> Callable[[str], dict[str, float]]:
    """Every figure of a family on the validation split."""
    known: dict[str, dict[str, float]] = {}

    def figures(family: str) -> dict[str, float]:
        if family not in known:
            model = build_model(models[family], val.spec)
            known[family] = evaluate_model(
                model, train, val, config(), prior=prior_of(model), classifier=classifier, what=family
            )
        return known[family]

    return figures


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_of_the_figures_are_those_that_come(
    family: str, models: Mapping[str, ModelConfig], val: Split, whole: Any
) -> None:
    model = build_model(models[family], val.spec)
    names = figure_names(model, config(), prior=prior_of(model), classified=True)
    assert list(whole(family)) == ["rows", *names]


@pytest.mark.parametrize("family", ["vae", "vqvae", "narrow"])
def test_the_names_of_factors_are_those_that_come(
    family: str, models: Mapping[str, ModelConfig], squares: Path
) -> None:
    train, test = open_split(squares, "train"), open_split(squares, "test")
    narrow = dataclasses.replace(models["vae"], latent_dim=1)  # of one dimension nothing is disentangled
    model = build_model({**models, "narrow": narrow}[family], test.spec)
    found = evaluate_model(model, train, test, config(), prior=None, classifier=None, what=family)
    assert {"rows", *figure_names(model, config(), classified=False)} == set(found)
    assert ("disentanglement_mig" in found) is (family == "vae")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_reported_is_known_from_the_configuration(
    family: str, models: Mapping[str, ModelConfig], val: Split
) -> None:
    """Without counts and standard errors, by which no two models are compared."""
    names = reported(models[family], val.spec, config())
    every = figure_names(build_model(models[family], val.spec), config(), classified=True)
    left_out = [name for name in every if name not in names]
    assert all(METRICS[name].compared for name in names if name in METRICS)
    assert not any(METRICS[name].compared for name in left_out)
    assert ("sample_classifier_frechet" in names) is (family not in ("autoencoder", "vqvae", "vqvae2"))
    assert names[0] == ("distortion_nats" if family == "autoencoder" else "neg_elbo_nats")


def test_what_is_reported_depends_on_what_is_measured_and_on_the_data(
    models: Mapping[str, ModelConfig], waves: Path, val: Split
) -> None:
    signals = open_split(waves, "val").spec
    assert {name.split("_")[0] for name in reported(models["vae"], signals, config())}.isdisjoint({"probe", "sample"})
    nothing = config(probe_images=0, feature_images=0, refined_images=0, annealed_images=0)
    names = set(reported(models["vae"], val.spec, config())) - set(reported(models["vae"], val.spec, nothing))
    assert {"probe_accuracy", "amortisation_gap_nats", "annealed_nll_nats", "sample_classifier_kernel"} <= names


@pytest.mark.parametrize("family", FAMILIES)
def test_each_figure_comes_alone_as_it_comes_with_the_others(
    family: str, models: Mapping[str, ModelConfig], train: Split, val: Split, classifier: FeatureClassifier, whole: Any
) -> None:
    model = build_model(models[family], val.spec)
    prior = prior_of(model)
    names = [name for name in whole(family) if name not in ("rows", *UNCOMPARED) and "standard_error" not in name]
    for chosen in ([name] for name in names):
        found = validation_figures(model, train, val, names=chosen, config=config(), classifier=classifier, prior=prior)
        assert found == {name: whole(family)[name] for name in chosen}


def test_what_is_not_wanted_is_not_computed(
    models: Mapping[str, ModelConfig], train: Split, val: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("not asked for")

    for name in ("importance_weighted", "amortisation_gap", "annealed_importance", "eval_step"):
        monkeypatch.setattr(measures, name, refuse)
    monkeypatch.setattr(reading, "fit_linear_probe", refuse)
    model = build_model(models["vae"], val.spec)
    names = ["mse", "active_units"]
    found = validation_figures(model, train, val, names=names, config=config(), classifier=None)
    assert list(found) == names
    with pytest.raises(AssertionError, match="not asked for"):
        validation_figures(model, train, val, names=["nll_nats"], config=config(), classifier=None)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_in_training_is_left_as_it_was(
    training: bool, models: Mapping[str, ModelConfig], train: Split, val: Split
) -> None:
    model = build_model(models["categorical"], val.spec).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = [parameter.data_ptr() for parameter in model.parameters()]
    validation_figures(model, train, val, names=["neg_elbo_nats"], config=config(), classifier=None)
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    assert places == [parameter.data_ptr() for parameter in model.parameters()]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_name_that_is_not_reported_is_refused_with_those_that_are(
    models: Mapping[str, ModelConfig], train: Split, val: Split
) -> None:
    model = build_model(models["vqvae"], val.spec)
    with pytest.raises(UserError, match=r"^nll_nats: not a figure of a model of kind vqvae on these data; it reports "
                                        r"neg_elbo_nats, .*codebook_perplexity"):  # fmt: skip
        validation_figures(model, train, val, names=["mse", "nll_nats"], config=config(), classifier=None)
    known = reported(models["vqvae"], val.spec, config())
    check_names(["mse"], known, "vqvae")
    with pytest.raises(UserError, match=r"^a, b: not a figure"):
        check_names(["a", "mse", "b"], known, "vqvae")


def test_a_figure_that_the_data_do_not_give_is_an_error(
    models: Mapping[str, ModelConfig], squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = open_split(squares, "train"), open_split(squares, "val")
    monkeypatch.setattr(reading, "FACTOR_VALUES", 1)  # so that no attribute is a factor
    model = build_model(models["vae"], val.spec)
    with pytest.raises(UserError, match=r"^disentanglement_mig: not to be had of these data; .*attributes of 2 to 64"):
        validation_figures(model, train, val, names=["mse", "disentanglement_mig"], config=config(), classifier=None)


def test_the_better_direction_is_that_of_the_report() -> None:
    for name, metric in METRICS.items():
        if metric.better:
            assert direction(name) == {"lower": "min", "higher": "max"}[metric.better], name
    assert {direction(name) for name in ("active_units", "codebook_perplexity", "codebook_level1_used_fraction")} == {
        "max"
    }
    assert {direction(name) for name in ("distortion_nats", "rate_nats", "neg_iwae_bound_nats")} == {"min"}


def test_the_names_of_the_scores_are_those_that_come() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(3, (300, 2), generator=generator).numpy()
    codes = torch.randn(300, 2, generator=generator).numpy()
    scores = disentanglement_scores(codes, factors, seed=0, train_rows=100, test_rows=100, group_rows=8)
    assert tuple(scores) == SCORES


def test_a_batch_is_encoded_once_whoever_asks(
    models: Mapping[str, ModelConfig], val: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(models["vae"], val.spec).eval()
    assert isinstance(model, GaussianModel)
    counted: list[int] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda x, c: counted.append(len(x)) or encode(x, c))
    (seen,) = batches(model, val, config(batch_size=1000), what="test")
    assert isinstance(seen.latent, torch.Tensor)
    assert torch.equal(seen.latent, seen.posterior.mean)
    assert torch.equal(seen.pixels.mean, model.decode(seen.latent, None).mean)
    assert seen.first(len(val)) is seen
    assert counted == [len(val)]
    few = seen.first(3)
    assert isinstance(few.latent, torch.Tensor)
    torch.testing.assert_close(few.latent, seen.latent[:3])
    assert not few.pixels.mean.requires_grad
