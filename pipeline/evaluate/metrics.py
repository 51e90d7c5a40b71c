"""Every figure of a model on a whole split."""

import math

import torch
from torch import Tensor

from pipeline.config import EvaluateConfig
from pipeline.data.loader import Loader, Split
from pipeline.progress import track
from vae_core.batch import Batch
from vae_core.likelihoods import observe
from vae_core.metrics.codebook import CodebookUsage
from vae_core.metrics.latent import ActiveUnits
from vae_core.metrics.likelihood import importance_weighted_nll
from vae_core.metrics.means import Means
from vae_core.models import Model
from vae_core.models.vae import VAE
from vae_core.models.vqvae import VQVAE
from vae_core.noise import Noise
from vae_core.sampling import reconstruct
from vae_core.training import eval_step

FIRST = ("neg_elbo_nats", "distortion_nats", "rate_nats", "nll_nats", "nll_standard_error_nats", "nll_samples", "mse")


def evaluate_model(model: Model, split: Split, config: EvaluateConfig, *, what: str) -> dict[str, float]:
    """The figures of `model` on `split`, each image counted once.

    Under a Bernoulli likelihood the model sees binary draws of the pixels (dynamic binarisation) and its likelihood is
    that of the draws; `mse` compares the reconstruction's mean with the grey intensities in [0, 1].
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    loader = Loader(split, seed=config.seed, window_shards=1, global_batch_size=config.batch_size)
    means = Means()
    extra = _Continuous(model, config.nll_samples) if isinstance(model, VAE) else _Quantized(model)
    steps = math.ceil(len(split) / config.batch_size)
    for step, batch in enumerate(track(loader.sequential(config.batch_size), total=steps, what=what, unit="batches")):
        batch = batch.to(device)
        noise = Noise.of(batch, seed=config.seed, scope=split.name, step=step)
        means.add(eval_step(model, batch, noise) | _errors(model, batch, noise), batch.weight)
        extra.add(batch, noise)
    model.to("cpu")
    return {"rows": len(split), **_ordered(means.compute() | extra.compute())}


@torch.no_grad()
def _errors(model: Model, batch: Batch, noise: Noise) -> dict[str, Tensor]:
    x = observe(batch.images, model.config.likelihood, noise)
    difference = reconstruct(model, x, batch.labels) - batch.images.float() / 255
    return {"mse": difference.square().flatten(1).mean(1)}


class _Continuous:
    """Importance-weighted likelihood and active units."""

    def __init__(self, model: VAE, samples: int) -> None:
        self.model, self.samples = model, samples
        self.means = Means()
        self.units = ActiveUnits(model.config.latent_dim)
        self.rows = 0

    @torch.no_grad()
    def add(self, batch: Batch, noise: Noise) -> None:
        x = observe(batch.images, self.model.config.likelihood, noise)
        nll = importance_weighted_nll(self.model, x, batch.labels, noise=noise, samples=self.samples)
        self.means.add({"nll": nll, "squared": nll.square()}, batch.weight)
        self.units.add(self.model.encode(x, batch.labels).mean, batch.weight)
        self.rows += batch.global_rows

    def compute(self) -> dict[str, float]:
        moments = self.means.compute()
        variance = max(0.0, moments["squared"] - moments["nll"] ** 2)
        return {
            "nll_nats": moments["nll"],
            "nll_samples": self.samples,
            "nll_standard_error_nats": math.sqrt(variance / self.rows),
            "active_units": self.units.compute(),
        }


class _Quantized:
    """Use of the codebook."""

    def __init__(self, model: VQVAE) -> None:
        self.model = model
        self.usage = CodebookUsage(model.config.num_codes)

    @torch.no_grad()
    def add(self, batch: Batch, noise: Noise) -> None:
        x = observe(batch.images, self.model.config.likelihood, noise)
        self.usage.add(self.model.quantizer.nearest(self.model.encode(x)), batch.weight)

    def compute(self) -> dict[str, float]:
        return self.usage.compute()


def _ordered(figures: dict[str, float]) -> dict[str, float]:
    """The best known first; six decimals are more than any of them deserves."""
    names = [*(name for name in FIRST if name in figures), *(name for name in figures if name not in FIRST)]
    return {name: value if isinstance(value := figures[name], int) else round(value, 6) for name in names}
