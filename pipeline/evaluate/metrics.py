"""Every figure of a model on a whole split, or some of them."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipeline.config import EvaluateConfig
from pipeline.data.loader import Split
from pipeline.evaluate import measures
from pipeline.evaluate.codebook import Codebook
from pipeline.evaluate.distances import distance_names, distances
from pipeline.evaluate.measures import Measure
from pipeline.evaluate.reading import Reading, readable
from pipeline.evaluate.seen import batches
from vae_core.metrics.features import FeatureClassifier
from vae_core.models import CodeModel, ContinuousModel, HasLikelihood, Model
from vae_core.models.gaussian import GaussianModel
from vae_core.priors import CodePrior

FIRST = ("neg_elbo_nats", "distortion_nats", "rate_nats", "nll_nats", "nll_standard_error_nats", "nll_samples", "mse")
LEARNED = "neg_elbo_learned_prior_nats"
OF_LEARNED = ("distortion_nats", "prior_nats")  # whose sum it is


def evaluate_model(
    model: Model,
    train: Split,
    test: Split,
    config: EvaluateConfig,
    *,
    prior: CodePrior | None,
    classifier: FeatureClassifier | None,
    what: str,
    names: Collection[str] | None = None,
) -> dict[str, float]:
    """The figures of `model` on `test`, each image counted once; `train` teaches what reads its representation.

    Under a Bernoulli likelihood the model sees binary draws of the pixels (dynamic binarisation) and its likelihood is
    that of the draws; `mse` compares the reconstruction's mean with the grey intensities in [0, 1].

    Args:
        names: of the figures that are wanted, None: all; what gives none of them is not computed.
    """
    if names is None:
        names = figure_names(model, config, prior=prior, classified=classifier is not None)
    wanted = {*names, *(OF_LEARNED if LEARNED in names else ())}
    with _evaluating(model, prior):
        reading = Reading(model, train, config, wanted)
        measured = [measure for measure in _measures(model, config, prior) if wanted & set(measure.names)]
        adding: list[Measure] = [*([reading] if reading.names else []), *measured]
        for seen in batches(model, test, config, what=what) if adding else ():
            for measure in adding:
                measure.add(seen)
        figures = {name: value for measure in measured for name, value in measure.compute().items()}
        if set(OF_LEARNED) <= set(figures):
            figures[LEARNED] = sum(figures[name] for name in OF_LEARNED)
        figures |= reading.compute() if reading.names else {}
        figures |= distances(model, test, config, wanted, prior=prior, classifier=classifier)
    return {"rows": len(test), **_ordered(figures)}


def figure_names(
    model: Model, config: EvaluateConfig, *, prior: CodePrior | None = None, classified: bool
) -> list[str]:
    """The names of the figures that `evaluate_model` may give, without a look at any data.

    Of these, `disentanglement_*` come only where attributes turn out to be factors, `sharpness_ratio` where images are
    not flat. `classified`: there is a classifier.
    """
    names = [name for measure in _measures(model, config, prior) for name in measure.names]
    names += [LEARNED] * ("prior_nats" in names)
    names += [*readable(model, config), *distance_names(model, config, prior=prior, classified=classified)]
    return list(_first(names))


def _measures(model: Model, config: EvaluateConfig, prior: CodePrior | None) -> Iterator[Measure]:
    yield measures.Objective(model)
    yield measures.Reconstructions(model)
    if isinstance(model, HasLikelihood):
        yield measures.Likelihood(model, config.nll_samples)
    if isinstance(model, ContinuousModel):
        yield measures.LatentSpace(model)
    if isinstance(model, CodeModel):
        yield Codebook(model, prior, config.coded_images)
    if isinstance(model, GaussianModel) and config.refined_images:
        yield measures.Refined(model, config.refined_images, config.refine_steps)
    if isinstance(model, GaussianModel) and config.annealed_images:
        yield measures.Annealed(model, config.annealed_images, config.annealed_steps, config.nll_samples)


@contextmanager
def _evaluating(*parts: nn.Module | None) -> Iterator[None]:
    """Evaluation mode, on a GPU where there is one; afterwards each is as it was and where it was."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = [part for part in parts if part is not None]
    before = [(next(part.parameters()).device, part.training) for part in there]
    for part in there:
        part.to(device).eval()
    try:
        yield
    finally:
        for part, (place, training) in zip(there, before, strict=True):
            part.to(place).train(training)


def _first(names: Collection[str]) -> Iterator[str]:
    """The best known first."""
    yield from (name for name in FIRST if name in names)
    yield from dict.fromkeys(name for name in names if name not in FIRST)


def _ordered(figures: dict[str, float]) -> dict[str, float]:
    """Six decimals are more than any of them deserves."""
    return {name: value if isinstance(value := figures[name], int) else round(value, 6) for name in _first(figures)}
