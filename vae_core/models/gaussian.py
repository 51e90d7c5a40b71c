"""Encoder, decoder and prior of the models with one layer of Gaussian latents; VAE and IWAE train it differently."""

from abc import ABC
from dataclasses import dataclass

from torch import Tensor, nn

from vae_core.config import DataSpec, IWAEConfig, VAEConfig
from vae_core.likelihoods import PixelHead, Pixels
from vae_core.linear import Linear
from vae_core.models.base import ContinuousModel, repeated
from vae_core.networks import build_decoder, build_encoder
from vae_core.noise import Noise
from vae_core.normal import LOG_2PI, DiagonalNormal, standard_log_prob
from vae_core.numerics import smooth_bound

PRIOR_WIDTH = 128


@dataclass(frozen=True, slots=True)
class GaussianOutput:
    """q(z | x), p(z) (None: standard normal), the draws z [S, B, L], and p(x | z) of each draw in turn, S x B rows."""

    posterior: DiagonalNormal
    prior: DiagonalNormal | None
    latent: Tensor
    pixels: Pixels


class GaussianModel(ContinuousModel, ABC):
    """q(z | x, c) and p(z | c) are diagonal normals; the prior is N(0, I) unless it is learned from the condition."""

    def __init__(self, config: VAEConfig | IWAEConfig, data: DataSpec) -> None:
        super().__init__(config, data)
        self.latent_dim = config.latent_dim
        self.encoder = build_encoder(config.network, data.shape, self.condition_dim)
        self.to_posterior = Linear(self.encoder.features, 2 * config.latent_dim)
        self.head = PixelHead(config, data.channels)
        pixels = (self.head.raw_channels, data.height, data.width)
        self.decoder = build_decoder(config.network, config.latent_dim, pixels, self.condition_dim)
        self.prior_network = (
            _prior_network(self.condition_dim, config.latent_dim) if config.prior == "learned" else None
        )

    def draws(self, noise: Noise) -> dict[str, Tensor]:
        return {"posterior": noise.normal("posterior", self.config.samples, self.latent_dim)}

    def encode(self, x: Tensor, c: Tensor | None) -> DiagonalNormal:
        """q(z | x, c) for observed pixels x [B, C, H, W]."""
        mean, log_var = self.to_posterior(self.encoder(x, c)).float().chunk(2, dim=1)
        return DiagonalNormal(mean, smooth_bound(log_var))

    def prior(self, c: Tensor | None) -> DiagonalNormal | None:
        """p(z | c); None stands for N(0, I)."""
        if self.prior_network is None:
            return None
        mean, log_var = self.prior_network(c).float().chunk(2, dim=1)
        return DiagonalNormal(mean, smooth_bound(log_var))

    def represent(self, x: Tensor, c: Tensor | None) -> Tensor:
        return self.encode(x, c).mean

    def decode(self, latent: Tensor, c: Tensor | None) -> Pixels:
        """p(x | z, c) for latents [B, L]."""
        pixels: Pixels = self.head(self.decoder(latent, c))
        return pixels

    def from_prior(self, epsilon: Tensor, c: Tensor | None) -> Tensor:
        prior = self.prior(c)
        return epsilon if prior is None else prior.draw(epsilon)

    def importance_noise(self, noise: Noise, purpose: str, samples: int) -> Tensor:
        return noise.normal(purpose, samples, self.latent_dim).movedim(1, 0)

    def log_weight(self, x: Tensor, c: Tensor | None, q: DiagonalNormal, epsilon: Tensor) -> Tensor:
        """log p(x, z | c) - log q(z | x, c) of z = mean + sigma x epsilon, [S, B]."""
        z = q.draw(epsilon)
        log_q = -0.5 * (epsilon.square() + q.log_var + LOG_2PI).sum(-1)
        return self.log_joint(x, c, z) - log_q

    def log_joint(self, x: Tensor, c: Tensor | None, z: Tensor) -> Tensor:
        """log p(x, z | c) in nats, [S, B], for latents [S, B, L]."""
        return self.log_likelihood(x, c, z) + self.log_prior(z, c)

    def log_likelihood(self, x: Tensor, c: Tensor | None, z: Tensor) -> Tensor:
        """log p(x | z, c) in nats, [S, B], for latents [S, B, L]."""
        return -self.decode(z.flatten(0, 1), repeated(c, len(z))).nll(x).view(z.shape[:2])

    def log_prior(self, z: Tensor, c: Tensor | None) -> Tensor:
        """log p(z | c) in nats, [S, B], for latents [S, B, L]."""
        prior = self.prior(c)
        return standard_log_prob(z) if prior is None else prior.log_prob(z)


def _prior_network(condition_dim: int, latent_dim: int) -> nn.Sequential:
    """Starts at N(0, I)."""
    last = Linear(PRIOR_WIDTH, 2 * latent_dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(Linear(condition_dim, PRIOR_WIDTH), nn.SiLU(), last)
