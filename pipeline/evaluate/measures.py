"""What is measured while a split passes by: each measure adds up over batches and gives its figures at the end."""

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from vae_core.batch import Batch
from vae_core.coding import decode_codes, encode_codes
from vae_core.likelihoods import observe
from vae_core.metrics.amortisation import Refinement, amortisation_gap
from vae_core.metrics.annealed import annealed_importance
from vae_core.metrics.codebook import CodebookUsage
from vae_core.metrics.diagnosis import Sharpness
from vae_core.metrics.image import SSIM_WINDOW, psnr, ssim
from vae_core.metrics.latent import ActiveUnits, AggregatePosterior, MarginalMoments
from vae_core.metrics.likelihood import LikelihoodSummary, bits_per_dimension, importance_weighted
from vae_core.metrics.means import Means
from vae_core.models import CodeModel, ContinuousModel, HasLikelihood, Model
from vae_core.models.base import Codes
from vae_core.models.gaussian import GaussianModel
from vae_core.noise import Noise
from vae_core.priors import CodePrior, uniform_nats
from vae_core.training import eval_step

LOG_2 = math.log(2)
MOST_DB = 100.0  # of one image's peak signal-to-noise ratio


@dataclass(frozen=True, slots=True)
class Seen:
    """A batch as a model sees it: with its noise, its observed pixels x and its condition c."""

    batch: Batch
    noise: Noise
    x: Tensor
    c: Tensor | None

    @classmethod
    def by(cls, model: Model, batch: Batch, noise: Noise) -> "Seen":
        return cls(batch, noise, observe(batch.images, model.config.likelihood, noise), model.condition(batch))

    def first(self, rows: int) -> "Seen":
        """The first rows alone, with the noise that they have in the whole."""
        batch = self.batch.apply(lambda tensor: tensor[:rows])
        noise = Noise(self.noise.seed, self.noise.scope, self.noise.step, batch.position, self.noise.rows)
        return Seen(batch, noise, self.x[:rows], None if self.c is None else self.c[:rows])


class Measure(Protocol):
    """Sums over batches; figures by name."""

    def add(self, seen: Seen) -> None: ...

    def compute(self) -> dict[str, float]: ...


class Objective:
    """The parts of the family's objective and, where the pixels are discrete, bits a dimension."""

    def __init__(self, model: Model) -> None:
        self.model, self.means = model, Means()
        self.discrete = model.config.likelihood in ("bernoulli", "discretised_logistic")

    def add(self, seen: Seen) -> None:
        self.means.add(eval_step(self.model, seen.batch, seen.noise), seen.batch.weight)

    def compute(self) -> dict[str, float]:
        figures = self.means.compute()
        if self.discrete and "neg_elbo_nats" in figures:
            bits = bits_per_dimension(figures["neg_elbo_nats"], self.model.data.pixels)
            figures["bits_per_dimension"] = bits
        return figures


class Reconstructions:
    """How near the mean of the reconstruction is to the grey image, both in [0, 1]."""

    def __init__(self, model: Model) -> None:
        self.model, self.means, self.sharpness = model, Means(), Sharpness()
        self.similar = min(model.data.height, model.data.width) >= SSIM_WINDOW

    @torch.no_grad()
    def add(self, seen: Seen) -> None:
        image, weight = seen.batch.images.float() / 255, seen.batch.weight
        mean = self.model.decode(self.model.represent(seen.x, seen.c), seen.c).mean.float()
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
        self.moments = MarginalMoments(model.latent_dim) if isinstance(model, GaussianModel) else None

    @torch.no_grad()
    def add(self, seen: Seen) -> None:
        weight = seen.batch.weight
        if isinstance(self.model, GaussianModel) and self.aggregate and self.moments:
            q, prior = self.model.encode(seen.x, seen.c), self.model.prior(seen.c)
            self.units.add(q.mean, weight)
            self.aggregate.add(q, prior, weight, seen.noise)
            if prior is None:
                self.moments.add(q, weight)
        else:
            self.units.add(self.model.represent(seen.x, seen.c), weight)

    def compute(self) -> dict[str, float]:
        figures: dict[str, float] = {"active_units": self.units.compute()}
        if self.aggregate:
            figures |= self.aggregate.compute().figures()
        if self.moments and self.model.config.prior == "standard":
            figures |= self.moments.compute()
        return figures


class Codebook:
    """Use of the codes; under a learned prior what they cost, and for some images the bytes that they really take."""

    def __init__(self, model: CodeModel, prior: CodePrior | None, coded_images: int) -> None:
        self.model, self.prior, self.wanted = model, prior, coded_images
        self.usage, self.means = CodebookUsage(model.num_codes, levels=len(model.grids)), Means()
        self.coded: list[Codes] = []
        self.conditions: list[Tensor] = []

    @torch.no_grad()
    def add(self, seen: Seen) -> None:
        codes, weight = self.model.represent(seen.x, seen.c), seen.batch.weight
        self.usage.add(codes, weight)
        if self.prior is None:
            return
        self.means.add({"prior_nats": self.prior.nll(codes, seen.c)}, weight)
        missing = self.wanted - sum(len(part[0]) for part in self.coded)
        if missing > 0:
            self.coded.append(tuple(level[weight > 0][:missing].cpu() for level in codes))
            self.conditions += [] if seen.c is None else [seen.c[weight > 0][:missing].cpu()]

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        figures = self.usage.compute()
        if self.prior is None:
            return figures
        nats = self.means.compute()["prior_nats"]
        figures["prior_nats"] = nats
        figures["prior_saving_fraction"] = 1 - nats / uniform_nats(self.prior)
        return figures | (self._written(self.prior) if self.coded else {})

    def _written(self, prior: CodePrior) -> dict[str, float]:
        """Bits an image of a file of codes that was written and read back.

        Raises:
            RuntimeError: the codes came back changed.
        """
        codes = tuple(torch.cat(level) for level in zip(*self.coded, strict=True))
        c = torch.cat(self.conditions) if self.conditions else None
        on_cpu = deepcopy(prior).to("cpu")  # the only place where coding gives the same bytes again
        data = encode_codes(on_cpu, codes, c)
        back = decode_codes(on_cpu, data, c)
        if not all(torch.equal(one, other) for one, other in zip(codes, back, strict=True)):
            raise RuntimeError("the entropy coder gave other codes back")
        images = len(codes[0])
        expected = float(on_cpu.nll(codes, c).double().mean()) / LOG_2
        return {
            "coded_images": images,
            "coded_bits": 8 * len(data) / images,
            "coded_over_prior_cost": 8 * len(data) / images / expected,
        }


class Representation:
    """Codes as vectors, and the labels and attributes that go with them, of the first `limit` rows."""

    def __init__(self, model: Model, limit: int) -> None:
        self.model, self.limit = model, limit
        self.rows = 0
        self.parts: dict[str, list[Tensor]] = {"codes": [], "labels": [], "attributes": []}

    @torch.no_grad()
    def add(self, seen: Seen) -> None:
        here = seen.first(self.limit - self.rows)
        if len(here.x) == 0:
            return
        latent = self.model.represent(here.x, here.c)
        vectors = latent if isinstance(latent, Tensor) else cast(CodeModel, self.model).vectors(latent)
        for name, values in (("codes", vectors), ("labels", here.batch.labels), ("attributes", here.batch.attributes)):
            if values is not None:
                self.parts[name].append(values[here.batch.weight > 0].cpu())
        self.rows += int((here.batch.weight > 0).sum())

    def __getitem__(self, name: str) -> Tensor | None:
        return torch.cat(self.parts[name]) if self.parts[name] else None


class Refined:
    """What the encoder costs against a posterior fitted to each image, on the first `images` rows."""

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
