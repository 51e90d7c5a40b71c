"""What is measured while a split passes by: each measure adds up over batches and gives its figures at the end."""

from collections.abc import Collection
from typing import Protocol, cast

import torch
from torch import Tensor

from pipeline.evaluate.seen import Seen
from vae_core.likelihoods import OF_LIKELIHOOD
from vae_core.metrics.amortisation import Refinement, amortisation_gap
from vae_core.metrics.annealed import annealed_importance
from vae_core.metrics.diagnosis import Sharpness
from vae_core.metrics.image import SSIM_WINDOW, psnr, ssim
from vae_core.metrics.latent import ActiveUnits, AggregatePosterior, MarginalMoments
from vae_core.metrics.likelihood import LikelihoodSummary, bits_per_dimension, importance_weighted
from vae_core.metrics.means import Means
from vae_core.models import ContinuousModel, HasLikelihood, Model
from vae_core.models.gaussian import GaussianModel
from vae_core.objectives import part_names
from vae_core.training import eval_step

MOST_DB = 100.0  # of one image's peak signal-to-noise ratio
BITS = "bits_per_dimension"
AGGREGATE = (
    "mutual_information_nats",
    "mutual_information_standard_error_nats",
    "mutual_information_limit_nats",
    "aggregate_kl_nats",
    "aggregate_rows",
)


class Measure(Protocol):
    """Sums over batches; figures by name."""

    @property
    def names(self) -> Collection[str]:
        """Of the figures that `compute` may give."""
        ...

    def add(self, seen: Seen) -> None: ...

    def compute(self) -> dict[str, float]: ...


class Objective:
    """The parts of the family's objective and, where the pixels are discrete, bits a dimension."""

    def __init__(self, model: Model) -> None:
        self.model, self.means, self.names = model, Means(), list(part_names(model.config))
        if "neg_elbo_nats" in self.names and not OF_LIKELIHOOD[model.config.likelihood].is_density:
            self.names.append(BITS)

    def add(self, seen: Seen) -> None:
        self.means.add(eval_step(self.model, seen.batch, seen.noise), seen.batch.weight)

    def compute(self) -> dict[str, float]:
        figures = self.means.compute()
        if BITS in self.names:
            figures[BITS] = bits_per_dimension(figures["neg_elbo_nats"], self.model.data.pixels)
        return figures


class Reconstructions:
    """How near the mean of the reconstruction is to the grey image, both in [0, 1]."""

    def __init__(self, model: Model) -> None:
        self.means, self.sharpness = Means(), Sharpness()
        self.similar = min(model.data.height, model.data.width) >= SSIM_WINDOW
        self.names = ["mse", "psnr_db", *["ssim"] * self.similar, "sharpness_ratio"]

    def add(self, seen: Seen) -> None:
        image, weight = seen.batch.images.float() / 255, seen.batch.weight
        mean = seen.pixels.mean.float()
        figures = {
            "mse": (mean - image).square().flatten(1).mean(1),
            "psnr_db": psnr(mean, image).clamp_max(MOST_DB),  # infinite where they are equal
        }
        if self.similar:
            figures["ssim"] = ssim(mean, image)
        self.means.add(figures, weight)
        self.sharpness.add(image, mean, weight)

    def compute(self) -> dict[str, float]:
        return self.means.compute() | self.sharpness.compute()


class Likelihood:
    """Importance-weighted likelihood."""

    names = (
        "nll_nats",
        "nll_standard_error_nats",
        "nll_samples",
        "effective_samples",
        "few_effective_samples_fraction",
    )

    def __init__(self, model: HasLikelihood, samples: int) -> None:
        self.model, self.samples, self.summary = model, samples, LikelihoodSummary()

    def add(self, seen: Seen) -> None:
        estimate = importance_weighted(self.model, seen.x, seen.c, noise=seen.noise, samples=self.samples)
        self.summary.add(estimate, seen.batch.weight)

    def compute(self) -> dict[str, float]:
        return self.summary.compute()


class LatentSpace:
    """How much of a continuous latent space is used, and whether codes of images lie where the prior does."""

    def __init__(self, model: ContinuousModel) -> None:
        self.model = model
        self.units = ActiveUnits(model.latent_dim)
        self.aggregate = AggregatePosterior(model.latent_dim) if isinstance(model, GaussianModel) else None
        standard = isinstance(model, GaussianModel) and model.config.prior == "standard"
        self.moments = MarginalMoments(model.latent_dim) if standard else None
        self.names = ["active_units", *(AGGREGATE if self.aggregate else ()), *["marginal_mismatch_nats"] * standard]

    @torch.no_grad()
    def add(self, seen: Seen) -> None:
        weight = seen.batch.weight
        self.units.add(cast(Tensor, seen.latent), weight)
        if isinstance(self.model, GaussianModel) and self.aggregate:
            self.aggregate.add(seen.posterior, self.model.prior(seen.c), weight, seen.noise)
        if self.moments:
            self.moments.add(seen.posterior, weight)

    def compute(self) -> dict[str, float]:
        figures: dict[str, float] = {"active_units": self.units.compute()}
        if self.aggregate:
            figures |= self.aggregate.compute().figures()
        if self.moments:
            figures |= self.moments.compute()
        return figures


class Refined:
    """What the encoder costs against a posterior fitted to each image, on the first `images` rows."""

    names = ("amortisation_gap_nats",)

    def __init__(self, model: GaussianModel, images: int, steps: int) -> None:
        self.model, self.left, self.fit = model, images, Refinement(steps=steps)
        self.means = Means()

    def add(self, seen: Seen) -> None:
        here = seen.first(self.left)
        if len(here.x):
            found = amortisation_gap(self.model, here.x, here.c, noise=here.noise, fit=self.fit)
            self.means.add({"amortisation_gap_nats": found.gap}, here.batch.weight)
            self.left -= len(here.x)

    def compute(self) -> dict[str, float]:
        return self.means.compute()


class Annealed:
    """An independent estimate of the likelihood of the first `images` rows, beside the importance-weighted one of the
    same rows."""

    names = ("annealed_nll_nats", "annealed_rows_nll_nats")

    def __init__(self, model: GaussianModel, images: int, steps: int, samples: int) -> None:
        self.model, self.left, self.steps, self.samples = model, images, steps, samples
        self.means = Means()

    def add(self, seen: Seen) -> None:
        here = seen.first(self.left)
        if len(here.x) == 0:
            return
        annealed = annealed_importance(self.model, here.x, here.c, noise=here.noise, steps=self.steps)
        weighted = importance_weighted(self.model, here.x, here.c, noise=here.noise, samples=self.samples)
        figures = {"annealed_nll_nats": -annealed.log_likelihood, "annealed_rows_nll_nats": weighted.nll}
        self.means.add(figures, here.batch.weight)
        self.left -= len(here.x)

    def compute(self) -> dict[str, float]:
        return self.means.compute()
