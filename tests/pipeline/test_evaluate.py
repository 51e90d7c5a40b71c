"""Figures of a model on a whole split: every image counts once, whatever the batches, and the same ones every time."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import files
from pipeline.config import EvaluateConfig, FeaturesConfig, Params, load_params
from pipeline.data.loader import Split, open_split
from pipeline.errors import UserError
from pipeline.evaluate.classifier import open_classifier, write_classifier
from pipeline.evaluate.codebook import Codebook
from pipeline.evaluate.distances import SUBSET_ROWS
from pipeline.evaluate.metrics import FIRST, evaluate_model
from pipeline.evaluate.models import digest, open_model, open_prior, same_model
from pipeline.report.vocabulary import METRICS
from pipeline.stages import evaluate as stage
from pipeline.train.run import TrainRun
from vae_core.batch import Batch
from vae_core.conditioning import Known
from vae_core.config import ModelConfig
from vae_core.config.priors import PixelCNNConfig
from vae_core.likelihoods import observe
from vae_core.metrics.features import FeatureClassifier
from vae_core.metrics.likelihood import importance_weighted
from vae_core.models import CodeModel, Model, build_model
from vae_core.models.vae import VAE
from vae_core.models.vqvae import VQVAE
from vae_core.noise import Noise
from vae_core.normal import kl
from vae_core.priors import CodePrior, build_prior, uniform_nats

PIXELS = {
    "rows",
    "distortion_nats",
    "mse",
    "psnr_db",
    "sharpness_ratio",
    "probe_accuracy",
}  # 8 x 8 is too small for SSIM
ELBO = {"neg_elbo_nats", "rate_nats"}
BINARY = {"bits_per_dimension"}
LIKELIHOOD = {"nll_nats", "nll_standard_error_nats", "nll_samples", "effective_samples",
              "few_effective_samples_fraction"}  # fmt: skip
AGGREGATE = {"mutual_information_nats", "mutual_information_standard_error_nats", "mutual_information_limit_nats",
             "aggregate_kl_nats", "aggregate_rows", "marginal_mismatch_nats"}  # fmt: skip
CODES = {"codebook_used_fraction", "codebook_perplexity"}
LEVELS = {f"codebook_level{level}_{name}" for level in (0, 1) for name in ("used_fraction", "perplexity")}
GAUSSIAN = PIXELS | ELBO | BINARY | LIKELIHOOD | {"active_units"} | AGGREGATE
NAMES = {
    "autoencoder": PIXELS | {"active_units"},
    "vae": GAUSSIAN,
    "cvae": GAUSSIAN,
    "iwae": GAUSSIAN | {"neg_iwae_bound_nats"},
    "vqvae": PIXELS | ELBO | CODES | {"commitment_squared_distance"},
    "vqvae2": PIXELS | ELBO | CODES | LEVELS | {"commitment_squared_distance"},
    "categorical": PIXELS | ELBO | BINARY | LIKELIHOOD | CODES,
    "hierarchical": PIXELS | ELBO | BINARY | LIKELIHOOD | {"active_units"},
}
DISTANCES = {f"{what}_classifier_{name}" for what in ("sample", "reconstruction") for name in ("frechet", "kernel")}
SCORES = {f"disentanglement_{name}" for name in (
    "mig", "modularity", "dci_disentanglement", "dci_completeness", "dci_informativeness", "sap", "explicitness",
    "factor_vae", "beta_vae")}  # fmt: skip
COSTS = {"prior_nats", "prior_saving_fraction", "neg_elbo_learned_prior_nats"}
CODED = COSTS | {"coded_images", "coded_bits", "coded_over_prior_cost"}
COUNTS = {"rows", "nll_samples", "active_units", "aggregate_rows", "coded_images"}
FRACTIONS = ("_fraction", "_accuracy", "probe_accuracy")


@pytest.fixture(scope="module")
def split(shards: Path) -> Split:
    return open_split(shards, "test")


@pytest.fixture(scope="module")
def learned(shards: Path) -> Split:
    return open_split(shards, "train")


def config(**changes: Any) -> EvaluateConfig:
    values: dict[str, Any] = {"seed": 0, "batch_size": 100, "nll_samples": 4, "figure_images": 10, "probe_images": 500}
    return EvaluateConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def judge(learned: Split, split: Split) -> Callable[..., dict[str, float]]:
    """The figures of a model; keywords beginning in capitals are other splits, the rest changes the configuration."""

    def found(
        model: Model | Path, prior: CodePrior | None = None, classifier: FeatureClassifier | None = None,
        train: Split = learned, test: Split = split, **changes: Any,
    ) -> dict[str, float]:  # fmt: skip
        opened = open_model(model) if isinstance(model, Path) else model
        return evaluate_model(opened, train, test, config(**changes), prior=prior, classifier=classifier, what="test")

    return found


@pytest.fixture(scope="module")
def scores(published: Mapping[str, Path], judge: Callable[..., dict[str, float]]) -> Mapping[str, dict[str, float]]:
    return {family: judge(folder) for family, folder in published.items()}


@pytest.fixture(scope="module")
def classifier(learned: Split, split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the features stage leaves. Not to be changed."""
    out = tmp_path_factory.mktemp("features") / "features"
    write_classifier(learned, split, FeaturesConfig(steps=40), out)
    return out


def prior_of(model: Model, **fields: Any) -> CodePrior:
    """A prior over a model's codes, as it was initialised."""
    assert isinstance(model, CodeModel)
    network = PixelCNNConfig(channels=8, layers=2, **fields)
    return build_prior(network, model.grids, model.num_codes, model.condition_dim).eval()


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
    there = [name for name in FIRST if name in found]
    assert list(found)[1 : 1 + len(there)] == there
    assert all(math.isfinite(value) for value in found.values())
    assert {name for name, value in found.items() if isinstance(value, int)} == COUNTS & set(found)
    assert found["rows"] == 330
    if "rate_nats" in found:
        assert found["neg_elbo_nats"] == pytest.approx(found["distortion_nats"] + found["rate_nats"], rel=1e-6)
        assert found["rate_nats"] >= 0
    if "bits_per_dimension" in found:
        assert found["bits_per_dimension"] == pytest.approx(found["neg_elbo_nats"] / 64 / math.log(2), abs=1e-6)


def test_the_report_has_words_for_every_figure() -> None:
    optional = {"amortisation_gap_nats", "annealed_nll_nats", "annealed_rows_nll_nats", "ssim"}
    assert set().union(*NAMES.values(), DISTANCES, SCORES, CODED, optional) <= set(METRICS)


@pytest.mark.parametrize("family", NAMES)
def test_figures_are_in_their_ranges(family: str, scores: Mapping[str, Mapping[str, float]]) -> None:
    found = scores[family]
    for name in found:
        if name.endswith(FRACTIONS):
            assert 0 <= found[name] <= 1, name
    assert found["psnr_db"] == pytest.approx(-10 * math.log10(found["mse"]), abs=1), "near that of the mean error"
    assert 0 <= found["sharpness_ratio"] < 1
    if "nll_nats" in found:
        assert found["nll_nats"] < found["neg_elbo_nats"], "more samples give a tighter bound"
        assert 0 < found["nll_standard_error_nats"] < 2
        assert found["nll_samples"] == 4
        assert 1 <= found["effective_samples"] <= 4
        assert found["few_effective_samples_fraction"] == 1, "of four samples, none has ten"
    if "mutual_information_nats" in found:
        assert found["aggregate_rows"] == 330
        assert found["mutual_information_limit_nats"] == pytest.approx(math.log(330), abs=1e-6)
        assert found["mutual_information_nats"] <= found["rate_nats"] + 0.1
    if "codebook_perplexity" in found:
        codes = {"vqvae": 16, "vqvae2": 8, "categorical": 4}[family]
        assert 1 <= found["codebook_perplexity"] <= codes * found["codebook_used_fraction"] <= codes


def test_the_rate_of_codes_is_that_of_a_uniform_prior(scores: Mapping[str, Mapping[str, float]]) -> None:
    assert scores["vqvae"]["rate_nats"] == pytest.approx(4 * math.log(16), abs=1e-5)
    assert scores["vqvae2"]["rate_nats"] == pytest.approx((16 + 4) * math.log(8), abs=1e-5)


def test_active_units_are_counted_among_the_dimensions(scores: Mapping[str, Mapping[str, float]]) -> None:
    for family, dimensions in {"autoencoder": 4, "vae": 4, "cvae": 4, "iwae": 4, "hierarchical": 16}.items():
        assert 0 <= scores[family]["active_units"] <= dimensions


@pytest.mark.parametrize("family", NAMES)
def test_the_same_figures_come_twice(
    family: str, published: Mapping[str, Path], scores: Mapping[str, Mapping[str, float]], judge: Any
) -> None:
    torch.manual_seed(9)
    assert judge(published[family]) == scores[family]


def test_another_seed_gives_other_draws(
    published: Mapping[str, Path], scores: Mapping[str, Mapping[str, float]], judge: Any
) -> None:
    other = judge(published["cvae"], seed=1)
    assert other["nll_nats"] != scores["cvae"]["nll_nats"]
    assert other["nll_nats"] == pytest.approx(scores["cvae"]["nll_nats"], abs=2)


SUMS_OF_DRAWS = {"mutual_information_nats", "mutual_information_standard_error_nats", "aggregate_kl_nats"}


@pytest.mark.parametrize("family", ["autoencoder", "vae", "vqvae2", "categorical", "hierarchical"])
def test_what_needs_no_draw_is_the_same_in_any_batches(
    family: str, models: Mapping[str, ModelConfig], split: Split, judge: Any
) -> None:
    """Draws are keyed by a row's place in its batch, so figures made of them differ as between seeds."""
    changed = {"estimator": "straight_through"} if family == "categorical" else {}
    model = build_model(
        dataclasses.replace(models[family], likelihood="gaussian", **changed), split.spec, seed=3
    ).eval()
    one, other = (judge(model, batch_size=size) for size in (37, 330))
    drawn = LIKELIHOOD | SUMS_OF_DRAWS | {"neg_elbo_nats", "distortion_nats"}
    if family == "hierarchical":
        drawn |= {"rate_nats"}  # of the lower groups, given what was drawn above them
    compared = set(one) if family in ("autoencoder", "vqvae2") else set(one) - drawn
    assert "mse" in compared
    assert "probe_accuracy" in compared
    assert {name: one[name] for name in compared} == pytest.approx({name: other[name] for name in compared}, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 100, 329, 330, 1000])
def test_codes_are_evaluated_alike_in_any_batches(
    published: Mapping[str, Path], split: Split, judge: Any, batch_size: int
) -> None:
    """A VQ-VAE needs no noise, so only the rounding of sums is left to differ from a plain loop."""
    model = open_model(published["vqvae"])
    found = judge(model, batch_size=batch_size, probe_images=0)
    assert isinstance(model, VQVAE)
    expected, used = plain_loop(model, split)
    assert found["rows"] == 330
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-6)
    frequency = used[used > 0] / used.sum()
    assert found["codebook_used_fraction"] == pytest.approx(len(frequency) / 16)
    assert found["codebook_perplexity"] == pytest.approx(math.exp(-(frequency * np.log(frequency)).sum()), abs=1e-5)


@torch.no_grad()
def plain_loop(model: VQVAE, split: Split) -> tuple[dict[str, float], np.ndarray]:
    """Figures of a VQ-VAE from single images, in float64, and how often each code occurs."""
    errors, distortions, used = [], [], np.zeros(16)
    sigma = model.head.log_sigma.double().exp()
    for x, _ in one_by_one(split):
        codes = model.represent(x, None)
        used += np.bincount(codes[0].flatten().numpy(), minlength=16)
        pixels = torch.distributions.Normal(model.decode(codes, None).mean.double(), sigma)
        errors.append((pixels.mean - x.double()).square().mean().item())
        distortions.append(-pixels.log_prob(x.double()).sum().item())
    return {"mse": float(np.mean(errors)), "distortion_nats": float(np.mean(distortions))}, used


@pytest.mark.parametrize("batch_size", [1, 7, 329, 1000])
def test_latents_are_evaluated_alike_in_any_batches(
    models: Mapping[str, ModelConfig], split: Split, judge: Any, batch_size: int
) -> None:
    """Rate, error and active units of a model that sees intensities need no noise."""
    model = build_model(dataclasses.replace(models["cvae"], likelihood="gaussian"), split.spec, seed=3).eval()
    assert isinstance(model, VAE)
    with torch.no_grad():
        model.to_posterior.weight[:2] *= 10  # two of four units carry something
        model.to_posterior.weight[2:4] *= 0
        given = [(x, model.condition(Known(labels=label))) for x, label in one_by_one(split)]
        posteriors = [model.encode(x, c) for x, c in given]
        rates = [kl(q).item() for q in posteriors]
        means = torch.cat([q.mean for q in posteriors])
        errors = [
            (model.decode(q.mean, c).mean - x).square().mean().item()
            for q, (x, c) in zip(posteriors, given, strict=True)
        ]
    found = judge(model, batch_size=batch_size, nll_samples=1, probe_images=0)
    assert found["rate_nats"] == pytest.approx(float(np.mean(rates)), abs=2e-6)
    assert found["mse"] == pytest.approx(float(np.mean(errors)), abs=2e-6)
    assert found["active_units"] == int((means.var(0, correction=0) > 0.01).sum()) == 2


def test_the_likelihood_has_the_standard_error_of_its_images(
    published: Mapping[str, Path], split: Split, judge: Any
) -> None:
    model = open_model(published["vae"])
    assert isinstance(model, VAE)
    rows = np.arange(len(split))
    images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(split.images(rows), -1, 1)))
    batch = Batch(images=images, labels=None, weight=torch.ones(len(rows)), position=torch.arange(len(rows)),
                  global_rows=len(rows))  # fmt: skip
    noise = Noise.of(batch, seed=0, scope="test", step=0)
    estimate = importance_weighted(model, observe(images, "bernoulli", noise), None, noise=noise, samples=4)
    found = judge(model, batch_size=330, probe_images=0)
    nll = estimate.nll.numpy()
    assert found["nll_nats"] == pytest.approx(nll.mean(), abs=1e-5)
    assert found["nll_standard_error_nats"] == pytest.approx(nll.std() / math.sqrt(330), abs=1e-5)
    assert found["effective_samples"] == pytest.approx(estimate.effective_samples.mean().item(), abs=1e-5)


def test_a_probe_reads_the_labels_from_pixels_but_not_from_a_constant(
    models: Mapping[str, ModelConfig], split: Split, judge: Any
) -> None:
    """Untrained, the code is a projection of the image; of a code that says nothing it can name but one class."""
    wide = dataclasses.replace(models["autoencoder"], latent_dim=40, likelihood="gaussian")
    model = build_model(wide, split.spec).eval()
    assert judge(model, probe_images=1163)["probe_accuracy"] > 0.75
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
    assert judge(model)["probe_accuracy"] < 0.2


def test_data_without_labels_have_neither_probe_nor_classifier(
    models: Mapping[str, ModelConfig], waves: Path, judge: Any, tmp_path: Path
) -> None:
    """Nor does a signal's height of one break a figure."""
    train, test = open_split(waves, "train"), open_split(waves, "test")
    metrics = write_classifier(train, test, FeaturesConfig(steps=2), tmp_path / "features")
    assert metrics == {"kind": "none", "why": "the data have no labels to train a classifier on"}
    assert files.read_json(tmp_path / "features" / "metrics.json") == metrics
    assert open_classifier(tmp_path / "features", test) is None
    for family in ("vae", "vqvae", "hierarchical"):
        found = judge(build_model(models[family], test.spec).eval(), train=train, test=test)
        assert set(found) == NAMES[family] - {"probe_accuracy"}
        assert found["rows"] == len(test)


def test_the_optional_checks_come_where_they_are_asked_for(
    published: Mapping[str, Path], scores: Mapping[str, Mapping[str, float]], judge: Any
) -> None:
    asked = {"refined_images": 3, "refine_steps": 5, "annealed_images": 3, "annealed_steps": 5, "batch_size": 330}
    found = judge(published["vae"], **asked)
    names = {"amortisation_gap_nats", "annealed_nll_nats", "annealed_rows_nll_nats"}
    assert set(found) == NAMES["vae"] | names
    assert all(math.isfinite(found[name]) for name in names)
    assert set(judge(published["vqvae"], **asked)) == NAMES["vqvae"]


def test_the_classifier_is_written_and_read_back(
    classifier: Path, split: Split, learned: Split, tmp_path: Path
) -> None:
    metrics = files.read_json(classifier / "metrics.json")
    assert (metrics["kind"], metrics["steps"]) == ("classifier", 40)
    assert 0.5 < metrics["test_accuracy"] <= 1
    assert write_classifier(learned, split, FeaturesConfig(steps=40), tmp_path / "again") == metrics
    for name in ("metrics.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (classifier / name).read_bytes()
    opened = open_classifier(classifier, split)
    assert opened is not None
    rows = np.arange(len(split))
    images = torch.from_numpy(split.images(rows)).movedim(-1, 1).float() / 255
    right = (opened(images).argmax(1).numpy() == split.labels(rows)).mean()
    assert right == pytest.approx(metrics["test_accuracy"], abs=1e-6)


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_classifier_that_is_not_there_names_the_remedy(
    classifier: Path, split: Split, tmp_path: Path, damage: str
) -> None:
    if damage == "torn":
        (tmp_path / "model.safetensors").write_bytes((classifier / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model.safetensors: .*; make it again with `dvc repro features`"):
        open_classifier(tmp_path, split)


@pytest.mark.parametrize("family", NAMES)
def test_distances_come_with_a_classifier(
    family: str, published: Mapping[str, Path], classifier: Path, split: Split, judge: Any
) -> None:
    model = open_model(published[family])
    prior = prior_of(model) if family in ("vqvae", "vqvae2") else None
    samples = family != "autoencoder"
    found = judge(model, prior, open_classifier(classifier, split), probe_images=0, coded_images=0)
    names = {name for name in DISTANCES if samples or not name.startswith("sample")}
    extra = COSTS if prior else set()
    assert set(found) == (NAMES[family] - {"probe_accuracy"}) | names | extra
    for name in names:
        assert found[name] > 0 or name.endswith("kernel"), "the kernel distance is unbiased, so it may be below 0"


def test_distances_tell_the_images_themselves_from_noise(
    published: Mapping[str, Path], classifier: Path, split: Split, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_classifier(classifier, split)
    poor = judge(published["vae"], None, opened, probe_images=0)
    monkeypatch.setattr("pipeline.evaluate.distances._reconstructions", lambda model, batch, *_: batch.images / 255)
    perfect = judge(published["vae"], None, opened, probe_images=0)
    assert perfect["reconstruction_classifier_frechet"] == pytest.approx(0, abs=1e-4)
    assert perfect["reconstruction_classifier_frechet"] < poor["reconstruction_classifier_frechet"]
    assert perfect["sample_classifier_frechet"] == poor["sample_classifier_frechet"]


def test_a_quantised_family_without_a_prior_has_no_samples_to_judge(
    published: Mapping[str, Path], classifier: Path, split: Split, judge: Any
) -> None:
    found = judge(published["vqvae"], None, open_classifier(classifier, split), probe_images=0)
    assert {name for name in found if "classifier" in name} == {n for n in DISTANCES if n.startswith("reconstruction")}


@pytest.mark.parametrize(("images", "there"), [(0, False), (1, False), (2, True), (5000, True)])
def test_distances_are_taken_from_as_many_images_as_asked_for_and_there_are(
    published: Mapping[str, Path], classifier: Path, split: Split, judge: Any, images: int, there: bool
) -> None:
    opened = open_classifier(classifier, split)
    found = judge(published["vae"], None, opened, feature_images=images, probe_images=0, nll_samples=1)
    assert (DISTANCES <= set(found)) is there
    assert SUBSET_ROWS > len(split)


@pytest.mark.parametrize("family", ["vqvae", "vqvae2"])
def test_a_prior_says_what_codes_cost_and_a_file_of_them_takes_no_more(
    family: str, published: Mapping[str, Path], judge: Any
) -> None:
    model = open_model(published[family])
    prior = prior_of(model)
    found = judge(model, prior, probe_images=0, coded_images=130)
    assert set(found) == (NAMES[family] - {"probe_accuracy"}) | CODED
    assert found["prior_saving_fraction"] == pytest.approx(1 - found["prior_nats"] / uniform_nats(prior), abs=1e-5)
    assert found["neg_elbo_learned_prior_nats"] == pytest.approx(found["distortion_nats"] + found["prior_nats"])
    assert found["coded_images"] == 130
    assert found["coded_bits"] == pytest.approx(found["prior_nats"] / math.log(2), rel=0.1)
    slack = 8 * 32 / 130 / found["coded_bits"]  # of the file's beginning and end
    assert 1 - 0.01 < found["coded_over_prior_cost"] < 1.01 + slack


def test_codes_are_coded_given_what_the_model_is_given(
    models: Mapping[str, ModelConfig], split: Split, judge: Any
) -> None:
    model = build_model(dataclasses.replace(models["vqvae2"], condition="label"), split.spec).eval()
    found = judge(model, prior_of(model), probe_images=0, coded_images=50)
    assert CODED <= set(found)
    assert found["coded_over_prior_cost"] == pytest.approx(1, abs=0.1)


def test_of_more_coded_images_than_there_are_all_are_coded(published: Mapping[str, Path], judge: Any) -> None:
    model = open_model(published["vqvae"])
    assert judge(model, prior_of(model), probe_images=0, coded_images=10_000)["coded_images"] == 330


def test_a_coder_that_gives_other_codes_back_is_an_error(
    published: Mapping[str, Path], judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(prior: CodePrior, data: bytes, c: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(20, 2, 2, dtype=torch.int64),)

    model = open_model(published["vqvae"])
    monkeypatch.setattr("pipeline.evaluate.codebook.decode_codes", other)
    with pytest.raises(RuntimeError, match="the entropy coder gave other codes back"):
        judge(model, prior_of(model), probe_images=0, coded_images=20)


def test_the_prior_stays_where_it_is_while_codes_are_written(published: Mapping[str, Path]) -> None:
    """Coding is done on the CPU; what follows still needs the prior on the device of the model."""
    model = open_model(published["vqvae"])
    assert isinstance(model, CodeModel)
    prior = prior_of(model).to("meta")
    measure = Codebook(model, prior, 5)
    measure.coded.append((torch.zeros(5, 2, 2, dtype=torch.int64),))
    with pytest.raises(NotImplementedError):  # a meta tensor holds nothing to copy
        measure._written(prior)
    assert {parameter.device.type for parameter in prior.parameters()} == {"meta"}


@pytest.mark.parametrize("family", ["vae", "autoencoder", "hierarchical", "vqvae"])
def test_where_attributes_are_factors_their_disentanglement_is_scored(
    family: str, models: Mapping[str, ModelConfig], squares: Path, judge: Any
) -> None:
    train, test = open_split(squares, "train"), open_split(squares, "test")
    model = build_model(models[family], test.spec).eval()
    found = judge(model, train=train, test=test, nll_samples=1)
    scored = SCORES if family != "vqvae" else set()  # whose codes are no vector of numbers
    assert set(found) == (NAMES[family] - {"probe_accuracy"}) | scored
    for name in scored:
        assert 0 <= found[name] <= 1, name
    assert judge(model, train=train, test=test, nll_samples=1) == found
    assert not SCORES & set(judge(model, train=train, test=test, factor_images=0))


def test_attributes_that_are_no_factors_are_not_scored(
    models: Mapping[str, ModelConfig], squares: Path, judge: Any
) -> None:
    """Numbers that hardly ever repeat, or fewer than two factors beside them."""
    train, test = open_split(squares, "train"), open_split(squares, "test")
    measured = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    for columns in ([0, 1, 2], [1, 2]):  # the one left is a factor, but alone
        with pytest.MonkeyPatch.context() as monkeypatch:
            for each in (train, test):
                changed = each._attributes.copy()
                changed[:, columns] = measured[: len(each), : len(columns)]
                if each is train:
                    assert len(np.unique(changed[:, columns[0]])) > 64
                monkeypatch.setattr(each, "_attributes", changed)
            assert not SCORES & set(judge(build_model(models["vae"], test.spec).eval(), train=train, test=test))


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


def test_a_family_whose_prior_is_in_the_model_has_none_beside_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"restore it with `dvc checkout`"):
        open_prior(tmp_path)
    files.write_json(tmp_path / "metrics.json", {"kind": "none", "reason": "it is part of the model"})
    assert open_prior(tmp_path) is None


def test_models_are_the_same_by_weights_and_configuration(
    published: Mapping[str, Path], make_run: Callable[..., TrainRun]
) -> None:
    assert same_model(published["vae"], published["vae"])
    assert not same_model(published["vae"], published["cvae"])


def test_the_digest_of_a_model_is_that_of_its_weights_and_configuration(
    published: Mapping[str, Path], tmp_path: Path
) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((published["vae"] / name).read_bytes())
    assert digest(tmp_path) == digest(published["vae"]) != digest(published["cvae"])
    assert len(digest(tmp_path)) == 16
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((published["cvae"] / name).read_bytes())
        assert digest(tmp_path) != digest(published["vae"])


@pytest.fixture
def params(params_text: str, tmp_path: Path) -> Params:
    (tmp_path / "params.yaml").write_text(params_text)
    return load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("same", [True, False])
def test_the_stage_leaves_figures_pictures_and_a_diagnosis(
    same: bool, params: Params, shards: Path, classifier: Path, published: Mapping[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for link, target in {
        "data/shards": shards, "data/features": classifier, "models/vae/best": published["vae"],
        "models/vae/baseline": published["vae" if same else "cvae"],
    }.items():  # fmt: skip
        Path(link).parent.mkdir(parents=True, exist_ok=True)
        Path(link).symlink_to(target)
    files.write_json(Path("models/vae/prior/metrics.json"), {"kind": "none"})
    stage.main(params, "vae")
    found = files.read_json(Path("results/evaluate/vae.json"))
    assert set(found["best"]["test"]) == NAMES["vae"] | DISTANCES
    assert (found["best"] == found["baseline"]) is same
    findings = files.read_json(Path("results/diagnosis/vae.json"))
    assert [finding["name"] for finding in findings][:1] == ["collapsed_posterior"], "after twenty steps"
    assert all(set(finding) == {"name", "evidence", "remedy"} for finding in findings)
    pictures = {path.name for path in Path("results/evaluate/vae").iterdir()}
    assert pictures == {"reconstructions.png", "interpolation.png", "samples.png", "traversal.png"}
    said = capsys.readouterr().err
    assert f"vae: test neg_elbo_nats {found['best']['test']['neg_elbo_nats']:.2f} (baseline " in said
    assert findings[0]["evidence"] in said
