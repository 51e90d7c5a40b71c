"""Every figure of a model on a whole split."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.config import EvaluateConfig
from pipeline.data.loader import Loader, Split
from pipeline.evaluate import measures
from pipeline.evaluate.disentanglement import disentanglement_scores
from pipeline.evaluate.distances import distances
from pipeline.evaluate.measures import Measure, Representation, Seen
from pipeline.progress import track
from vae_core.metrics.features import FeatureClassifier
from vae_core.metrics.probe import fit_linear_probe
from vae_core.models import CodeModel, ContinuousModel, HasLikelihood, Model
from vae_core.models.gaussian import GaussianModel
from vae_core.noise import Noise
from vae_core.priors import CodePrior

FIRST = ("neg_elbo_nats", "distortion_nats", "rate_nats", "nll_nats", "nll_standard_error_nats", "nll_samples", "mse")
TESTED_ROWS = 10_000  # of the representation, at most
PROBE_WIDTH = 4096  # numbers of a representation above which no probe is fitted: it would take longer than the rest
FACTOR_VALUES = 64  # an attribute with at most so many values is a factor


def evaluate_model(
    model: Model,
    train: Split,
    test: Split,
    config: EvaluateConfig,
    *,
    prior: CodePrior | None,
    classifier: FeatureClassifier | None,
    what: str,
) -> dict[str, float]:
    """The figures of `model` on `test`, each image counted once; `train` teaches what reads its representation.

    Under a Bernoulli likelihood the model sees binary draws of the pixels (dynamic binarisation) and its likelihood is
    that of the draws; `mse` compares the reconstruction's mean with the grey intensities in [0, 1].
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    prior = None if prior is None else prior.to(device).eval()
    measured = list(_measures(model, config, prior))
    tested = Representation(model, TESTED_ROWS)
    for seen in _pass(model, test, config, what=what):
        tested.add(seen)
        for measure in measured:
            measure.add(seen)
    figures = {name: value for measure in measured for name, value in measure.compute().items()}
    if "prior_nats" in figures:
        figures["neg_elbo_learned_prior_nats"] = figures["distortion_nats"] + figures["prior_nats"]
    figures |= _read(model, train, tested, config)
    figures |= distances(model, test, config, prior=prior, classifier=classifier)
    for part in (model, *([] if prior is None else [prior])):
        part.to("cpu")
    return {"rows": len(test), **_ordered(figures)}


def _measures(model: Model, config: EvaluateConfig, prior: CodePrior | None) -> Iterator[Measure]:
    yield measures.Objective(model)
    yield measures.Reconstructions(model)
    if isinstance(model, HasLikelihood):
        yield measures.Likelihood(model, config.nll_samples)
    if isinstance(model, ContinuousModel):
        yield measures.LatentSpace(model)
    if isinstance(model, CodeModel):
        yield measures.Codebook(model, prior, config.coded_images)
    if isinstance(model, GaussianModel) and config.refined_images:
        yield measures.Refined(model, config.refined_images, config.refine_steps)
    if isinstance(model, GaussianModel) and config.annealed_images:
        yield measures.Annealed(model, config.annealed_images, config.annealed_steps, config.nll_samples)


def _pass(model: Model, split: Split, config: EvaluateConfig, *, what: str, rows: int | None = None) -> Iterator[Seen]:
    """The batches of a split, or of its first `rows`, as the model sees them."""
    device = next(model.parameters()).device
    loader = Loader(split, seed=config.seed, window_shards=1, global_batch_size=config.batch_size)
    steps = math.ceil(min(len(split), rows or len(split)) / config.batch_size)
    batches = (batch for _, batch in zip(range(steps), loader.sequential(config.batch_size), strict=False))
    for step, batch in enumerate(track(batches, total=steps, what=what, unit="batches")):
        batch = batch.to(device)
        yield Seen.by(model, batch, Noise.of(batch, seed=config.seed, scope=split.name, step=step))


def _read(model: Model, train: Split, tested: Representation, config: EvaluateConfig) -> dict[str, float]:
    """What can be read from the representation: labels by a linear probe, factors by disentanglement scores."""
    labels, factors = tested["labels"], _factors(tested["attributes"])
    codes = tested["codes"]
    narrow = codes is not None and codes.shape[1] <= PROBE_WIDTH
    probing = config.probe_images if labels is not None and narrow else 0
    scoring = config.factor_images if factors is not None and isinstance(model, ContinuousModel) else 0
    if not probing and not scoring:
        return {}
    learned = Representation(model, max(probing, scoring))
    for seen in _pass(model, train, config, what="read the representation", rows=learned.limit):
        learned.add(seen)
    figures: dict[str, float] = {}
    known_codes = learned["codes"]
    assert codes is not None
    assert known_codes is not None
    if probing and labels is not None and (known := learned["labels"]) is not None:
        probe = fit_linear_probe(known_codes[:probing], known[:probing], num_classes=model.data.num_classes)
        figures["probe_accuracy"] = probe.accuracy(codes, labels)
    if scoring and (factors := _factors(learned["attributes"])) is not None:
        scores = disentanglement_scores(known_codes.numpy(), factors, seed=config.seed)
        figures |= {f"disentanglement_{name}": score for name, score in scores.items()}
    return figures


def _factors(attributes: Tensor | None) -> np.ndarray | None:
    """Integers [N, F] of the attributes that take few values; None where there are fewer than two of those."""
    if attributes is None:
        return None
    numbered = [column.unique(return_inverse=True) for column in attributes.T]
    factors = [numbers for values, numbers in numbered if 2 <= len(values) <= FACTOR_VALUES]
    return torch.stack(factors, dim=1).numpy() if len(factors) >= 2 else None


def _ordered(figures: dict[str, float]) -> dict[str, float]:
    """The best known first; six decimals are more than any of them deserves."""
    names = [*(name for name in FIRST if name in figures), *(name for name in figures if name not in FIRST)]
    return {name: value if isinstance(value := figures[name], int) else round(value, 6) for name in names}
