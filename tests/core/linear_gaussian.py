"""Models of the real families with linear networks, whose p(x), ELBO and posterior have closed forms."""

import math

import torch
from torch import Tensor, distributions, nn

from vae_core.config import DataSpec, IWAEConfig, MLPConfig, VAEConfig
from vae_core.likelihoods import Gaussian, Pixels
from vae_core.models.gaussian import GaussianModel
from vae_core.models.iwae import IWAE
from vae_core.models.vae import VAE

SIGMA = 0.6
# Orthogonal columns, so that the exact posterior of the latents has a diagonal covariance.
LOADING = torch.tensor([[1.0, 0.5], [0.5, -1.0], [1.0, 0.5], [-0.5, 1.0]], dtype=torch.float64)
OFFSET = torch.tensor([0.1, -0.2, 0.3, 0.4], dtype=torch.float64)
DATA = DataSpec(channels=1, height=2, width=2)
UNUSED = MLPConfig(kind="mlp", hidden=(1,))


class _Pixels(nn.Module):
    """The features of the encoder: the pixels."""

    features = 4

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return x.flatten(1)


class _Means(nn.Module):
    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.loading = nn.Linear(latent_dim, 4)

    def forward(self, z: Tensor, condition: Tensor | None) -> Tensor:
        means: Tensor = self.loading(z).unflatten(1, DATA.shape)
        return means


class _Head(nn.Module):
    def forward(self, raw: Tensor) -> Pixels:
        return Gaussian(raw, torch.tensor(math.log(SIGMA), dtype=raw.dtype))


def linear(model: GaussianModel, *, shift: float = 0.0, widen: float = 0.0, turn: float = 0.0) -> GaussianModel:
    """`model` with p(x | z) = N(LOADING z + OFFSET, SIGMA^2) and the exact posterior as encoder.

    Args:
        shift: of the encoder's means.
        widen: of its log-variances.
        turn: added to the weights of its means, so that it errs by the image.
    """
    dim = model.latent_dim
    loading = LOADING[:, :dim]
    precision = 1 + loading.square().sum(0) / SIGMA**2
    model.encoder, model.decoder, model.head = _Pixels(), _Means(dim), _Head()
    model.to_posterior = nn.Linear(4, 2 * dim)
    with torch.no_grad():
        model.decoder.loading.weight.copy_(loading)
        model.decoder.loading.bias.copy_(OFFSET)
        to_mean = (loading / SIGMA**2 / precision).T
        model.to_posterior.weight.zero_()[:dim] = to_mean + turn
        model.to_posterior.bias[:dim] = -to_mean @ OFFSET + shift
        model.to_posterior.bias[dim:] = widen - precision.log()
    return model.eval()


def linear_iwae(
    *, samples: int = 1, gradient: str = "iwae", latent_dim: int = 2, shift: float = 0.0, widen: float = 0.0
) -> IWAE:
    config = IWAEConfig(kind="iwae", latent_dim=latent_dim, network=UNUSED, samples=samples, gradient=gradient)  # type: ignore[arg-type]
    model = linear(IWAE(config, DATA), shift=shift, widen=widen)
    assert isinstance(model, IWAE)
    return model


def linear_vae(
    *, samples: int = 1, latent_dim: int = 2, shift: float = 0.0, widen: float = 0.0, turn: float = 0.0
) -> VAE:
    config = VAEConfig(kind="vae", latent_dim=latent_dim, network=UNUSED, samples=samples)
    model = linear(VAE(config, DATA), shift=shift, widen=widen, turn=turn)
    assert isinstance(model, VAE)
    return model


def pixels(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def exact_nll(x: Tensor, latent_dim: int = 2) -> Tensor:
    """-log N(x; OFFSET, W W' + SIGMA^2 I), float64 [B]."""
    loading = LOADING[:, :latent_dim]
    marginal = distributions.MultivariateNormal(OFFSET, loading @ loading.T + SIGMA**2 * torch.eye(4).double())
    return -marginal.log_prob(x.flatten(1).double())


def exact_neg_elbo(model: GaussianModel, x: Tensor) -> Tensor:
    """E_q[-log p(x | z)] + KL(q || p) in closed form, differentiable, [B]; written out from the parameters."""
    mean, log_var = model.to_posterior(x.flatten(1)).chunk(2, dim=1)
    loading = model.decoder.loading.weight
    error = (x.flatten(1) - model.decoder.loading.bias - mean @ loading.T).square().sum(1)
    spread = (log_var.exp() * loading.square().sum(0)).sum(1)
    distortion = (error + spread) / (2 * SIGMA**2) + 4 * (math.log(SIGMA) + 0.5 * math.log(2 * math.pi))
    neg_elbo: Tensor = distortion + 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
    return neg_elbo
