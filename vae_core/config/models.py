"""The model families. Every number that the objective weighs with may be a schedule."""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from vae_core.config.base import Strict, check, check_at_least
from vae_core.config.networks import ConvConfig, NetworkConfig
from vae_core.config.schedules import Scheduled, check_scheduled

Likelihood: TypeAlias = Literal["bernoulli", "continuous_bernoulli", "gaussian", "discretised_logistic"]
Condition: TypeAlias = Literal["none", "label", "attributes", "embedding"]
Prior: TypeAlias = Literal["standard", "learned"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelBase(Strict):
    """What every family has.

    Attributes:
        likelihood: p(x | z) of the pixels. `bernoulli` binarises the pixels anew at each draw (dynamic binarisation).
        sigma: of `gaussian`: a number, `learned` (one for all pixels) or `per_pixel` (from the decoder).
        condition: what encoder and decoder are given of each sample besides its pixels.
        condition_dropout: share of training rows that hide it, so that the model also works without.
    """

    SCHEDULED: ClassVar[tuple[str, ...]] = ()

    likelihood: Likelihood = "bernoulli"
    sigma: float | Literal["learned", "per_pixel"] = "learned"
    condition: Condition = "none"
    condition_dropout: float = 0.0

    def __post_init__(self) -> None:
        named = self.sigma in ("learned", "per_pixel")
        positive = not isinstance(self.sigma, str) and self.sigma > 0
        check(self, "sigma", named or positive, "a number above 0, learned or per_pixel")
        check(self, "condition_dropout", 0 <= self.condition_dropout < 1, "a share from 0 to below 1")
        for field in self.SCHEDULED:
            if getattr(self, field) is not None:
                check_scheduled(self, field, at_least=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig(ModelBase):
    """Deterministic autoencoder: no prior, no rate; the baseline of reconstruction."""

    kind: Literal["autoencoder"]
    latent_dim: int
    network: NetworkConfig

    def __post_init__(self) -> None:
        ModelBase.__post_init__(self)
        check_at_least(self, 1, "latent_dim")


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEConfig(ModelBase):
    """Gaussian posterior, N(0, I) prior (arXiv:1312.6114); with `condition`, the conditional VAE.

    The objective is distortion + beta x rate, where at most one of these changes the rate:
    `capacity` C: beta x |rate - C| (arXiv:1804.03599, equation 8);
    `free_bits` nats: max(free_bits, rate of a latent dimension averaged over the batch), summed over the dimensions
    (arXiv:1606.04934, appendix C.8);
    `total_correlation`: mutual information + total_correlation x total correlation + beta x dimension-wise KL
    (arXiv:1802.04942, equation 4), by minibatch-weighted sampling.

    Attributes:
        samples: draws from the posterior an image and step.
        prior: `learned`: p(z | condition) is a normal whose mean and variance are learned (needs a condition).
    """

    SCHEDULED: ClassVar[tuple[str, ...]] = ("beta", "capacity", "total_correlation")

    kind: Literal["vae"]
    latent_dim: int
    network: NetworkConfig
    beta: Scheduled = 1.0
    samples: int = 1
    capacity: Scheduled | None = None
    free_bits: float = 0.0
    total_correlation: Scheduled | None = None
    prior: Prior = "standard"

    def __post_init__(self) -> None:
        ModelBase.__post_init__(self)
        check_at_least(self, 1, "latent_dim", "samples")
        check_at_least(self, 0, "free_bits")
        check(self, "prior", self.prior == "standard" or self.condition != "none", "standard where condition is none")
        changed = [self.capacity is not None, self.free_bits > 0, self.total_correlation is not None]
        check(self, "total_correlation", sum(changed) <= 1, "at most one of capacity, free_bits, total_correlation")


@dataclass(frozen=True, kw_only=True, slots=True)
class IWAEConfig(ModelBase):
    """Importance-weighted autoencoder: the VAE trained on the bound of `samples` draws (arXiv:1509.00519, equation 8).

    Attributes:
        gradient: of the encoder. `iwae`: that of the bound; `stl`: without the score term of q (arXiv:1703.09194);
            `dreg`: doubly reparameterised (arXiv:1810.04152, equation 8).
    """

    kind: Literal["iwae"]
    latent_dim: int
    network: NetworkConfig
    samples: int = 5
    gradient: Literal["iwae", "stl", "dreg"] = "dreg"
    prior: Prior = "standard"

    def __post_init__(self) -> None:
        ModelBase.__post_init__(self)
        check_at_least(self, 1, "latent_dim", "samples")
        check(self, "prior", self.prior == "standard" or self.condition != "none", "standard where condition is none")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedBase(ModelBase):
    """What the families with a codebook share (arXiv:1711.00937).

    Attributes:
        num_codes, code_dim: of each codebook. For `fsq`, num_codes must be a whole number to the power of code_dim.
        codebook: `ema`: follows the encoder by moving averages (appendix A.1); `loss`: by gradient (equation 3);
            `fsq`: a fixed grid, finite scalar quantisation (arXiv:2309.15505), which cannot collapse.
        distance: `cosine`: of vectors scaled to length 1.
        start: `outputs`: codes begin at encoder outputs of the first batch; `kmeans`: at the means of their clusters.
        restart_below: codes used less than this share of the mean use restart at an encoder output; 0: never.
        commitment_weight: beta of equation 3.
    """

    SCHEDULED: ClassVar[tuple[str, ...]] = ("commitment_weight",)

    num_codes: int
    code_dim: int
    network: ConvConfig
    codebook: Literal["ema", "loss", "fsq"] = "ema"
    distance: Literal["euclidean", "cosine"] = "euclidean"
    start: Literal["outputs", "kmeans"] = "outputs"
    commitment_weight: Scheduled = 0.25
    ema_decay: float = 0.99
    restart_below: float = 0.05
    likelihood: Likelihood = "gaussian"

    def __post_init__(self) -> None:
        ModelBase.__post_init__(self)
        check(self, "num_codes", self.num_codes >= 2, "an integer of at least 2")
        check_at_least(self, 1, "code_dim")
        check(self, "ema_decay", 0 < self.ema_decay < 1, "a number between 0 and 1, both excluded")
        check_at_least(self, 0, "restart_below")
        if self.codebook == "fsq":
            fits = self.fsq_levels**self.code_dim == self.num_codes and self.fsq_levels >= 2
            check(self, "num_codes", fits, f"L ** code_dim for fsq, such as {3**self.code_dim} or {5**self.code_dim}")

    @property
    def fsq_levels(self) -> int:
        """Steps of each dimension of the grid of `fsq`."""
        levels: int = round(self.num_codes ** (1 / self.code_dim))
        return levels


@dataclass(frozen=True, kw_only=True, slots=True)
class VQVAEConfig(QuantizedBase):
    """Vector-quantised autoencoder with one grid of codes (arXiv:1711.00937)."""

    kind: Literal["vqvae"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VQVAE2Config(QuantizedBase):
    """Several grids of codes, each half the size of the one below it, quantised from the top down (arXiv:1906.00446).

    Attributes:
        levels: grids; the lowest is the input downsampled `network.downsamples` times.
    """

    kind: Literal["vqvae2"]
    levels: int = 2

    def __post_init__(self) -> None:
        QuantizedBase.__post_init__(self)
        check(self, "levels", 2 <= self.levels <= 4, "an integer from 2 to 4")


@dataclass(frozen=True, kw_only=True, slots=True)
class CategoricalConfig(ModelBase):
    """`variables` categorical latents of `categories` values each, uniform prior; trained by one of the estimators.

    Attributes:
        estimator: `gumbel`: relaxed samples (arXiv:1611.01144); `straight_through`: hard samples, relaxed gradient;
            `reinforce`: score function with a learned and a running baseline (arXiv:1402.0030); `rloo`: score function
            with leave-one-out baseline; `vimco`: of the importance-weighted bound (arXiv:1602.06725);
            `wake_sleep` (Hinton et al., Science 1995).
        samples: draws an image and step; rloo and vimco need at least 2.
        temperature: of gumbel and straight_through.
    """

    SCHEDULED: ClassVar[tuple[str, ...]] = ("beta", "temperature")

    kind: Literal["categorical"]
    variables: int
    categories: int
    network: NetworkConfig
    estimator: Literal["gumbel", "straight_through", "reinforce", "rloo", "vimco", "wake_sleep"] = "gumbel"
    samples: int = 1
    beta: Scheduled = 1.0
    temperature: Scheduled = 1.0

    def __post_init__(self) -> None:
        ModelBase.__post_init__(self)
        check_at_least(self, 1, "variables")
        check_at_least(self, 2, "categories")
        many = self.estimator in ("rloo", "vimco")
        check(self, "samples", self.samples >= (2 if many else 1), f"at least {2 if many else 1} for {self.estimator}")
        check_scheduled(self, "temperature", above=0)
        weighs = self.estimator not in ("vimco", "wake_sleep")
        check(self, "beta", weighs or self.beta == 1, f"1 for {self.estimator}, which has no rate to weigh")


@dataclass(frozen=True, kw_only=True, slots=True)
class HierarchicalConfig(ModelBase):
    """Deep hierarchical VAE: groups of latent maps drawn from the top down, residual cells (arXiv:2007.03898).

    Attributes:
        network: its downsamples give the scales; its residual blocks are the cells of each group.
        groups: of latents a scale.
        latent_channels: of each group's map.
        free_bits: nats a group, of the batch mean, below which its rate costs nothing.
        balance: weigh the groups' rates during the first 30 % of the run, so that none dies (appendix A).
    """

    SCHEDULED: ClassVar[tuple[str, ...]] = ("beta",)

    kind: Literal["hierarchical"]
    network: ConvConfig
    groups: int = 2
    latent_channels: int = 4
    beta: Scheduled = 1.0
    free_bits: float = 0.0
    balance: bool = True

    def __post_init__(self) -> None:
        ModelBase.__post_init__(self)
        check_at_least(self, 1, "groups", "latent_channels")
        check_at_least(self, 0, "free_bits")


QuantizedConfig: TypeAlias = VQVAEConfig | VQVAE2Config
ModelConfig: TypeAlias = (
    AutoencoderConfig | VAEConfig | IWAEConfig | QuantizedConfig | CategoricalConfig | HierarchicalConfig
)
