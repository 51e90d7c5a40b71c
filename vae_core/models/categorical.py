"""Autoencoder with categorical latents and a uniform prior over them, trained by one of six gradient estimators."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_core import estimators
from vae_core.config import CategoricalConfig, DataSpec, MLPConfig
from vae_core.distributed import all_reduce_sum
from vae_core.likelihoods import PixelHead, Pixels
from vae_core.linear import Linear
from vae_core.models.base import CodeModel, Codes, Followed, Inputs, repeated
from vae_core.networks import build_decoder, build_encoder
from vae_core.noise import Noise

BASELINE = MLPConfig(kind="mlp", hidden=(100,), activation="tanh")
DECAY = 0.8  # of the running statistics of the learning signal


@dataclass(frozen=True, slots=True)
class Expectation:
    """What `reinforce` expects a draw to cost, from earlier steps.

    Attributes:
        cost: [B] the baseline network's prediction plus the running mean of what it misses.
        scale: 0-dim; 1 / max(1, running standard deviation of the cost less that); 0 while there was no earlier step.
    """

    cost: Tensor
    scale: Tensor


@dataclass(frozen=True, slots=True)
class CategoricalOutput:
    """One pass through encoder and decoder, with S draws of the latents.

    Attributes:
        posterior: [B, V, K] log-probabilities of each variable's categories.
        distortion: [S, B] -log p(x | z) of each draw; of relaxed draws while `gumbel` trains, else of exact ones.
        log_q: [S, B] log q(z | x) of the draws; None where the gradient flows through the draws themselves.
        expected: of `reinforce`.
        dream_log_q: of `wake_sleep`: [S, B] log q(z | x) where latents and pixels are the model's own.
    """

    posterior: Tensor
    distortion: Tensor
    log_q: Tensor | None = None
    expected: Expectation | None = None
    dream_log_q: Tensor | None = None

    def cost(self, beta: Tensor | float) -> Tensor:
        """-log p(x | z) + beta (log q(z | x) - log p(z)) of each draw, [S, B]: at beta 1 minus its log-weight."""
        assert self.log_q is not None, "relaxed draws have no probability"
        _, variables, categories = self.posterior.shape
        return self.distortion + beta * (self.log_q + variables * math.log(categories))


class Categorical(CodeModel):
    """q(z | x, c) and p(z) are products of `variables` categorical distributions; the decoder sees one-hot vectors."""

    def __init__(self, config: CategoricalConfig, data: DataSpec) -> None:
        super().__init__(config, data)
        self.grids, self.num_codes = ((1, config.variables),), config.categories
        width = config.variables * config.categories
        self.encoder = build_encoder(config.network, data.shape, self.condition_dim)
        self.to_posterior = Linear(self.encoder.features, width)
        self.head = PixelHead(config, data.channels)
        pixels = (self.head.raw_channels, data.height, data.width)
        self.decoder = build_decoder(config.network, width, pixels, self.condition_dim)
        self.baseline = Baseline(data, self.condition_dim) if config.estimator == "reinforce" else None

    def draws(self, noise: Noise) -> dict[str, Tensor]:
        samples, variables = self.config.samples, self.config.variables
        if self.config.estimator in ("gumbel", "straight_through"):
            return {"posterior": noise.uniform("posterior", samples, variables, self.num_codes)}
        drawn = {"posterior": noise.uniform("posterior", samples, variables)}
        if self.config.estimator == "wake_sleep":
            drawn["prior"] = noise.uniform("prior", samples, variables)
            drawn["dream"] = noise.uniform("dream", samples, *self.data.shape)
        return drawn

    def forward(self, inputs: Inputs) -> CategoricalOutput:
        x, c = inputs.x, inputs.condition
        posterior = self.encode(x, c)
        uniform = inputs.draws["posterior"].movedim(1, 0)
        if self.config.estimator in ("gumbel", "straight_through"):
            latent = self._perturbed(posterior, uniform, inputs.weights["temperature"])
            return CategoricalOutput(posterior, self._distortion(x, c, latent))
        codes = estimators.inverse_cdf(posterior, uniform)
        return CategoricalOutput(
            posterior,
            self._distortion(x, c, estimators.one_hot(codes, self.num_codes)),
            log_q=estimators.log_prob(posterior, codes),
            expected=None if self.baseline is None else self.baseline(x, c),
            dream_log_q=self._dream_log_q(c, inputs) if self.config.estimator == "wake_sleep" else None,
        )

    def followed(self, output: CategoricalOutput, inputs: Inputs) -> Followed:
        """`reinforce`: the cost less what was expected, [B, S]."""
        if output.expected is None:
            return {}
        return {"missed": (output.cost(inputs.weights["beta"]) - output.expected.cost).T}

    @torch.no_grad()
    def update(self, followed: Followed, row_weight: Tensor, noise: Noise, taken: Tensor) -> None:
        """`reinforce`: let the running statistics follow the costs of the global batch."""
        if self.baseline is not None:
            self.baseline.follow(followed["missed"].T, row_weight, taken)

    def encode(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Log-probabilities of q(z | x, c), float32 [B, V, K], for observed pixels x [B, C, H, W]."""
        logits = self.to_posterior(self.encoder(x, c)).float()
        return F.log_softmax(logits.unflatten(1, (self.config.variables, self.num_codes)), dim=-1)

    def represent(self, x: Tensor, c: Tensor | None) -> Codes:
        """The most probable category of each variable: one grid, int64 [B, 1, V]."""
        return (self.encode(x, c).argmax(-1)[:, None],)

    def decode(self, latent: Codes, c: Tensor | None) -> Pixels:
        """p(x | z, c) for codes ([B, 1, V],)."""
        (codes,) = latent
        return self._decode(estimators.one_hot(codes[:, 0], self.num_codes), c)

    def vectors(self, latent: Codes) -> Tensor:
        """One-hot."""
        return estimators.one_hot(latent[0][:, 0], self.num_codes).flatten(1)

    def between(self, start: Codes, end: Codes, fraction: float) -> Codes:
        """Categories have no order: of the variables that differ, the first `fraction` are those of `end`."""
        differ = start[0] != end[0]
        changed = differ.cumsum(-1) <= (fraction * differ.sum(-1, keepdim=True)).round()
        return (torch.where(changed, end[0], start[0]),)

    def prior_codes(self, uniform: Tensor) -> Codes:
        """Draws from the prior as `decode` takes them, for `uniform` [B, V] in [0, 1)."""
        return (estimators.uniform_codes(uniform, self.num_codes)[:, None],)

    def importance_noise(self, noise: Noise, purpose: str, samples: int) -> Tensor:
        return noise.uniform(purpose, samples, self.config.variables).movedim(1, 0)

    def log_weight(self, x: Tensor, c: Tensor | None, q: Tensor, epsilon: Tensor) -> Tensor:
        """log p(x, z | c) - log q(z | x, c), [S, B], of exact draws z for uniform `epsilon` [S, B, V]."""
        codes = estimators.inverse_cdf(q, epsilon)
        distortion = self._distortion(x, c, estimators.one_hot(codes, self.num_codes))
        return -CategoricalOutput(q, distortion, estimators.log_prob(q, codes)).cost(1.0)

    def _perturbed(self, posterior: Tensor, uniform: Tensor, temperature: Tensor) -> Tensor:
        """[S, B, V, K]: relaxed while `gumbel` trains, else exact; in training with the relaxed draws' gradient."""
        gumbel = estimators.standard_gumbel(uniform)
        if not self.training:
            return estimators.one_hot(estimators.gumbel_max(posterior, gumbel), self.num_codes)
        relaxed = estimators.gumbel_softmax(posterior, gumbel, temperature)
        return relaxed if self.config.estimator == "gumbel" else estimators.straight_through(relaxed)

    def _dream_log_q(self, c: Tensor | None, inputs: Inputs) -> Tensor:
        """[S, B] log q(z | x) of latents from the prior and pixels from the decoder, which gets no gradient."""
        codes = estimators.uniform_codes(inputs.draws["prior"].movedim(1, 0), self.num_codes)
        each = repeated(c, len(codes))
        with torch.no_grad():
            pixels = self._decode(estimators.one_hot(codes, self.num_codes).flatten(0, 1), each)
            x = pixels.draw(inputs.draws["dream"].movedim(1, 0).flatten(0, 1))
        log_q = estimators.log_prob(self.encode(x, each), codes.flatten(0, 1)[None])
        return log_q.view(codes.shape[:2])

    def _distortion(self, x: Tensor, c: Tensor | None, latent: Tensor) -> Tensor:
        """-log p(x | z, c), [S, B], for vectors [S, B, V, K]."""
        pixels = self._decode(latent.flatten(0, 1), repeated(c, len(latent)))
        return pixels.nll(x).view(latent.shape[:2])

    def _decode(self, vectors: Tensor, c: Tensor | None) -> Pixels:
        pixels: Pixels = self.head(self.decoder(vectors.flatten(1), c))
        return pixels


class Baseline(nn.Module):
    """Learns what a draw will cost from x and c alone, and how far the cost strays from that.

    Source: Mnih & Gregor, arXiv:1402.0030, section 2.3; here the statistics used are those of earlier steps only, so
    that they do not depend on the draws that they judge.
    """

    mean: Tensor
    variance: Tensor
    started: Tensor

    def __init__(self, data: DataSpec, condition_dim: int) -> None:
        super().__init__()
        self.body = build_encoder(BASELINE, data.shape, condition_dim)
        self.out = Linear(self.body.features, 1)
        for name in ("mean", "variance", "started"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, x: Tensor, c: Tensor | None) -> Expectation:
        predicted = self.out(self.body(x, c)).float().squeeze(1)
        return Expectation(predicted + self.mean, self.started / self.variance.sqrt().clamp_min(1.0))

    def follow(self, missed: Tensor, row_weight: Tensor, taken: Tensor) -> None:
        """Take one global batch into the statistics: `missed` is cost less expected cost, [S, B]; all ranks call it.

        Where not `taken` (bool, 0-dim), they stay as they are.
        """
        counted = torch.where(row_weight > 0, missed, 0.0).double()  # padding may hold anything
        count = row_weight.sum() * len(missed)
        sums = torch.stack(((counted * row_weight).sum(), (counted.square() * row_weight).sum(), count))
        total, squares, count = all_reduce_sum(sums)
        mean, keep = total / count, DECAY * self.started
        variance = (self.variance * keep).add_((1 - keep) * (squares / count - mean.square()).clamp_min(0))
        self.variance.copy_(torch.where(taken, variance, self.variance))
        self.mean.add_(torch.where(taken, (1 - keep) * mean, 0.0))
        self.started.copy_(torch.where(taken, 1.0, self.started))
