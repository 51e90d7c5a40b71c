"""What the families have in common: what a step gives them, and what can be asked of each."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from vae_core.conditioning import Conditioner, HasColumns
from vae_core.config import DataSpec, ModelConfig
from vae_core.likelihoods import Pixels
from vae_core.noise import Noise

Codes: TypeAlias = tuple[Tensor, ...]
Latent: TypeAlias = Tensor | Codes
Followed: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Inputs:
    """One step's rows as a model sees them. Nothing in it is random any more, so forward and objective are pure.

    Attributes:
        x: [B, C, H, W] observed pixels, float32.
        condition: [B, E], or None.
        draws: what `Model.draws` gave, each [B, ...].
        weights: 0-dim float32; the value at this step of each field of the configuration that may be a schedule.
        progress: 0-dim float32; step / total steps.
        row_weight: [B]; 1 for a row of the data, 0 for padding.
        global_rows: rows of the data in the global batch, over all ranks.
    """

    x: Tensor
    condition: Tensor | None
    draws: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    progress: Tensor
    row_weight: Tensor
    global_rows: int


class Model(nn.Module, ABC):
    """A family's networks. It knows no loss: `objectives` turns the output of `forward` into one."""

    def __init__(self, config: ModelConfig, data: DataSpec) -> None:
        super().__init__()
        self.config: Any = config
        self.data = data
        self.conditioner = None if config.condition == "none" else Conditioner(config.condition, data)

    @property
    def condition_dim(self) -> int:
        """Width of the condition vector; 0 without one."""
        return self.conditioner.dim if self.conditioner else 0

    def condition(self, known: HasColumns) -> Tensor | None:
        """[B, E] what encoder and decoder are given of each row besides its pixels, or None.

        Raises:
            ValueError: the rows lack the column that the model is conditioned on.
        """
        return self.conditioner(known) if self.conditioner else None

    def draws(self, noise: Noise) -> dict[str, Tensor]:
        """The random numbers of one step, each [B, ...]."""
        return {}

    @abstractmethod
    def forward(self, inputs: Inputs) -> Any:
        """The family's output, from which its objective follows. Pure."""

    def followed(self, output: Any, inputs: Inputs) -> Followed:
        """What `update` reads of an output, by name, each [B, ...]."""
        return {}

    @torch.no_grad()
    def update(self, followed: Followed, row_weight: Tensor, noise: Noise, taken: Tensor) -> None:
        """Change what does not follow a gradient, after the optimizer's step; every rank calls it.

        Args:
            followed: of all rows of this rank.
            row_weight: [B]; 0 for padding, which may hold anything.
            taken: bool, 0-dim: whether the optimizer took its step; if not, nothing may change.
        """
        return

    @abstractmethod
    def represent(self, x: Tensor, c: Tensor | None) -> Latent:
        """The code of observed pixels x [B, C, H, W], without a draw: posterior means [B, L], or a tuple of codes."""

    @abstractmethod
    def decode(self, latent: Any, c: Tensor | None) -> Pixels:
        """p(x | latent, c) for what `represent` or the prior gives."""


class ContinuousModel(Model, ABC):
    """A model whose code is a vector of `latent_dim` numbers."""

    latent_dim: int

    @abstractmethod
    def represent(self, x: Tensor, c: Tensor | None) -> Tensor:
        """[B, latent_dim]: the posterior's mean."""

    @abstractmethod
    def decode(self, latent: Tensor, c: Tensor | None) -> Pixels:
        """p(x | z, c) for z [B, latent_dim]."""


class CodeModel(Model, ABC):
    """A model whose code is one or more grids of whole numbers below `num_codes`, the top level first."""

    grids: tuple[tuple[int, int], ...]
    num_codes: int

    @abstractmethod
    def represent(self, x: Tensor, c: Tensor | None) -> Codes:
        """int64 [B, h, w] of each level."""

    @abstractmethod
    def decode(self, latent: Codes, c: Tensor | None) -> Pixels:
        """p(x | codes, c)."""

    @abstractmethod
    def vectors(self, latent: Codes) -> Tensor:
        """[B, F]: what the decoder sees of codes, as one vector an image."""

    @abstractmethod
    def between(self, start: Codes, end: Codes, fraction: float) -> Codes:
        """Codes at `fraction` of the way from `start` to `end`."""


@runtime_checkable
class HasPrior(Protocol):
    """A continuous model with a prior of its own (all but the plain autoencoder)."""

    latent_dim: int

    def from_prior(self, epsilon: Tensor, c: Tensor | None) -> Tensor:
        """Standard normal [B, latent_dim] -> draws from p(z | c), [B, latent_dim]."""
        ...


@runtime_checkable
class HasLikelihood(Protocol):
    """A model whose joint density log p(x, z) and posterior can be evaluated, so that log p(x) can be estimated."""

    def encode(self, x: Tensor, c: Tensor | None) -> Any:
        """The parameters of q(z | x, c), computed once for any number of draws."""
        ...

    def importance_noise(self, noise: Noise, purpose: str, samples: int) -> Tensor:
        """[samples, B, ...] random numbers from which `log_weight` makes its latents."""
        ...

    def log_weight(self, x: Tensor, c: Tensor | None, q: Any, epsilon: Tensor) -> Tensor:
        """log p(x, z | c) - log q(z | x, c) in nats, float32 [samples, B]."""
        ...


def repeated(condition: Tensor | None, samples: int) -> Tensor | None:
    """[B, E] -> [samples * B, E], for latents of shape [samples, B, L] flattened."""
    return condition if condition is None or samples == 1 else condition.repeat(samples, 1)
