"""Frozen configuration of every model and network. Plain data: no YAML, no pydantic, no torch."""

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias


class RangeError(ValueError):
    """A value of the right type but outside what the field allows."""

    def __init__(self, field: str, expected: str, got: object) -> None:
        super().__init__(f"{field}: expected {expected}, got {got!r}")
        self.field, self.expected, self.got = field, expected, got


class Strict:
    """Base of all configuration classes: pydantic, where it reads them, must refuse unknown keys, wrong types, NaN."""

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


def check(config: object, field: str, valid: bool, expected: str) -> None:
    """Raise RangeError for `field` of `config` unless `valid`."""
    if not valid:
        raise RangeError(field, expected, getattr(config, field))


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPConfig(Strict):
    """Fully connected body; the decoder mirrors the encoder."""

    kind: Literal["mlp"]
    hidden: tuple[int, ...]
    activation: Literal["relu", "tanh", "silu"] = "relu"

    def __post_init__(self) -> None:
        check(self, "hidden", len(self.hidden) > 0 and min(self.hidden) > 0, "at least one width, each at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvConfig(Strict):
    """Strided convolutions, then residual blocks; each downsampling halves height and width."""

    kind: Literal["conv"]
    channels: int
    downsamples: int
    residual_blocks: int = 0
    activation: Literal["relu", "tanh", "silu"] = "relu"

    def __post_init__(self) -> None:
        check(self, "channels", self.channels >= 1, "an integer of at least 1")
        check(self, "downsamples", 1 <= self.downsamples <= 6, "an integer from 1 to 6")
        check(self, "residual_blocks", self.residual_blocks >= 0, "an integer of at least 0")


NetworkConfig: TypeAlias = MLPConfig | ConvConfig
Likelihood: TypeAlias = Literal["bernoulli", "gaussian"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEConfig(Strict):
    """Gaussian posterior and standard normal prior (arXiv:1312.6114); conditional when `condition` names a column.

    `bernoulli` binarises the pixels anew at each draw (dynamic binarisation); `gaussian` has one learned sigma.
    """

    kind: Literal["vae"]
    latent_dim: int
    network: NetworkConfig
    beta: float = 1.0
    likelihood: Likelihood = "bernoulli"
    condition: Literal["none", "label"] = "none"

    def __post_init__(self) -> None:
        check(self, "latent_dim", self.latent_dim >= 1, "an integer of at least 1")
        check(self, "beta", self.beta >= 0, "a number of at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class VQVAEConfig(Strict):
    """Vector-quantised autoencoder with an exponential-moving-average codebook (arXiv:1711.00937, appendix A.1)."""

    kind: Literal["vqvae"]
    num_codes: int
    code_dim: int
    network: ConvConfig
    commitment_weight: float = 0.25
    ema_decay: float = 0.99
    restart_below: float = 0.05
    likelihood: Likelihood = "gaussian"

    def __post_init__(self) -> None:
        check(self, "num_codes", self.num_codes >= 2, "an integer of at least 2")
        check(self, "code_dim", self.code_dim >= 1, "an integer of at least 1")
        check(self, "commitment_weight", self.commitment_weight >= 0, "a number of at least 0")
        check(self, "ema_decay", 0 < self.ema_decay < 1, "a number between 0 and 1, both excluded")
        check(self, "restart_below", self.restart_below >= 0, "a number of at least 0")


ModelConfig: TypeAlias = VAEConfig | VQVAEConfig

_MODELS: dict[str, type[VAEConfig] | type[VQVAEConfig]] = {"vae": VAEConfig, "vqvae": VQVAEConfig}
_NETWORKS: dict[str, type[MLPConfig] | type[ConvConfig]] = {"mlp": MLPConfig, "conv": ConvConfig}


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec(Strict):
    """What a model must know of its data: image shape [C, H, W] and, where there are labels, how many classes."""

    channels: int
    height: int
    width: int
    num_classes: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """JSON-ready form; `model_from_dict` reads it back."""
    return asdict(config)


def model_from_dict(data: dict[str, Any]) -> ModelConfig:
    """Inverse of `to_dict`.

    Raises:
        ValueError: an unknown kind, or keys that the kind does not have.
    """
    values = dict(data)
    network = dict(values["network"])
    if "hidden" in network:
        network["hidden"] = tuple(network["hidden"])
    values["network"] = _build(_NETWORKS, network)
    model: ModelConfig = _build(_MODELS, values)
    return model


def _build(kinds: dict[str, Any], values: dict[str, Any]) -> Any:
    kind = kinds.get(values.get("kind", ""))
    if kind is None:
        raise ValueError(f"kind: expected one of {sorted(kinds)}, got {values.get('kind')!r}")
    unknown = set(values) - {field.name for field in fields(kind)}
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {sorted(unknown)}")
    return kind(**values)
