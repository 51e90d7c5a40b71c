"""A split as a model sees it, batch by batch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.config import EvaluateConfig
from pipeline.data.loader import Loader, Split
from pipeline.progress import track
from vae_core.batch import Batch
from vae_core.likelihoods import Pixels, observe
from vae_core.models import Model
from vae_core.models.base import Latent
from vae_core.models.gaussian import GaussianModel
from vae_core.noise import Noise
from vae_core.normal import DiagonalNormal


@dataclass(frozen=True)
class Seen:
    """A batch, its noise, observed pixels x and condition c; what the model makes of them is computed once."""

    model: Model
    batch: Batch
    noise: Noise
    x: Tensor
    c: Tensor | None

    @classmethod
    def by(cls, model: Model, batch: Batch, noise: Noise) -> "Seen":
        x = observe(batch.images, model.config.likelihood, noise)
        return cls(model, batch, noise, x, model.condition(batch))

    @cached_property
    def posterior(self) -> DiagonalNormal:
        """q(z | x, c) of a model with one layer of Gaussian latents."""
        assert isinstance(self.model, GaussianModel)
        with torch.no_grad():
            return self.model.encode(self.x, self.c)

    @cached_property
    def latent(self) -> Latent:
        """What `represent` gives."""
        if isinstance(self.model, GaussianModel):
            return self.posterior.mean
        with torch.no_grad():
            return self.model.represent(self.x, self.c)

    @cached_property
    def pixels(self) -> Pixels:
        """The reconstruction."""
        with torch.no_grad():
            return self.model.decode(self.latent, self.c)

    def first(self, rows: int) -> "Seen":
        """The first rows alone, with the noise that they have in the whole."""
        if rows >= len(self.x):
            return self
        batch = self.batch.apply(lambda tensor: tensor[:rows])
        noise = Noise(self.noise.seed, self.noise.scope, self.noise.step, batch.position, self.noise.rows)
        return Seen(self.model, batch, noise, self.x[:rows], None if self.c is None else self.c[:rows])


def batches(
    model: Model, split: Split, config: EvaluateConfig, *, what: str, rows: int | None = None
) -> Iterator[Seen]:
    """The batches of a split, or of its first `rows`, on the model's device."""
    device = next(model.parameters()).device
    loader = Loader(split, seed=config.seed, window_shards=1, global_batch_size=config.batch_size)
    steps = math.ceil(min(len(split), rows or len(split)) / config.batch_size)
    first = (batch for _, batch in zip(range(steps), loader.sequential(config.batch_size), strict=False))
    for step, batch in enumerate(track(first, total=steps, what=what, unit="batches")):
        batch = batch.to(device)
        yield Seen.by(model, batch, Noise.of(batch, seed=config.seed, scope=split.name, step=step))
