"""params.yaml -> frozen `Params`, strictly and once a process. The only reader of YAML."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.config_errors import describe, explain, line_of
from pipeline.data.config import DataConfig, ReadConfig, ShardConfig
from pipeline.errors import UserError, did_you_mean
from vae_core.config import ModelConfig, Scheduled, Strict, check, check_at_least, check_scheduled, to_dict
from vae_core.config.priors import PixelCNNConfig

PARAMS_FILE = Path("params.yaml")

Scalar: TypeAlias = int | float | str
AnyModel: TypeAlias = Annotated[ModelConfig, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Strict):
    seed: int
    epochs: int
    global_batch_size: int
    learning_rate: Scheduled
    max_grad_norm: float
    window_shards: int
    lanes: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: Literal["off", "on", "cuda_graphs"] = "off"
    ema_decay: float = 0.0
    max_skipped_steps: int = 10

    def __post_init__(self) -> None:
        check(self, "seed", self.seed >= 0, "an integer of at least 0")
        for name in ("epochs", "global_batch_size", "window_shards", "lanes"):
            check(self, name, getattr(self, name) >= 1, "an integer of at least 1")
        check(self, "max_grad_norm", self.max_grad_norm > 0, "a number above 0")
        check_scheduled(self, "learning_rate", above=0)
        check(self, "ema_decay", 0 <= self.ema_decay < 1, "a number from 0 (no average) to below 1")
        check(self, "max_skipped_steps", self.max_skipped_steps >= 0, "an integer of at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig(Strict):
    trials: int
    seed: int
    scheduler: Literal["halving", "none"]
    rungs: tuple[int, ...]

    def __post_init__(self) -> None:
        check(self, "trials", self.trials >= 0, "an integer of at least 0")
        check(self, "seed", self.seed >= 0, "an integer of at least 0")
        rising = all(a < b for a, b in zip((0, *self.rungs), self.rungs, strict=False))
        check(self, "rungs", rising, "epochs of at least 1, each above the one before")


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig(Strict):
    search: SearchConfig
    spaces: dict[str, dict[str, tuple[Scalar, ...]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig(Strict):
    """The learned prior over the codes of a quantised family; the best epoch on the validation split is kept."""

    seed: int = 0
    epochs: int = 20
    global_batch_size: int = 128
    learning_rate: Scheduled = 0.001
    max_grad_norm: float = 10.0
    network: PixelCNNConfig = field(default_factory=PixelCNNConfig)

    def __post_init__(self) -> None:
        check_at_least(self, 0, "seed")
        check_at_least(self, 1, "epochs", "global_batch_size")
        check(self, "max_grad_norm", self.max_grad_norm > 0, "a number above 0")
        check_scheduled(self, "learning_rate", above=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesConfig(Strict):
    """The classifier whose features the distances between images are taken in."""

    seed: int = 0
    steps: int = 1500
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_at_least(self, 0, "seed")
        check_at_least(self, 1, "steps", "batch_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig(Strict):
    """What is measured on the test split. 0 leaves a figure out.

    Attributes:
        nll_samples: importance samples an image.
        feature_images: test images, and samples, between which the Frechet and kernel distances are taken.
        probe_images: training images that the linear probe learns from.
        factor_images: training images for the disentanglement scores, where attributes are factors.
        coded_images: test images whose codes are written under the prior and decoded back.
        refined_images, refine_steps: test images whose posterior is refined one by one, for the amortisation gap.
        annealed_images, annealed_steps: test images whose likelihood is checked by annealed importance sampling.
        inception_weights: file of torch-fidelity's weights; null: distances in the classifier's features alone.
    """

    seed: int
    batch_size: int
    nll_samples: int
    figure_images: int
    feature_images: int = 2000
    probe_images: int = 5000
    factor_images: int = 15_000
    coded_images: int = 256
    refined_images: int = 0
    refine_steps: int = 100
    annealed_images: int = 0
    annealed_steps: int = 500
    inception_weights: str | None = None

    def __post_init__(self) -> None:
        check_at_least(self, 0, "seed", "feature_images", "probe_images", "factor_images", "coded_images")
        check_at_least(self, 0, "refined_images", "annealed_images")
        check_at_least(self, 1, "batch_size", "nll_samples", "figure_images", "refine_steps", "annealed_steps")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig(Strict):
    parity_images: int
    tolerance: float

    def __post_init__(self) -> None:
        check(self, "parity_images", self.parity_images >= 1, "an integer of at least 1")
        check(self, "tolerance", self.tolerance > 0, "a number above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig(Strict):
    title: str
    data_images: int

    def __post_init__(self) -> None:
        check(self, "data_images", self.data_images >= 1, "an integer of at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainConfig(Strict):
    """No keys yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig(Strict):
    """Where and how it runs. Never changes what is computed, so no stage depends on it."""

    address: str | None
    workers: int | Literal["auto"]
    storage: str
    downloads: str
    checkpoint_every_steps: int
    max_failures: int
    shards: str | None = None
    device_cache: bool | Literal["auto"] = "auto"
    verify: Literal["once", "always", "never"] = "once"
    cache: str = ".cache/shards"
    cache_bytes: int = 50 * 1024**3
    remote_timeout_s: float = 120.0

    @property
    def read(self) -> ReadConfig:
        """How a node reads shards."""
        return ReadConfig(
            verify=self.verify,
            cache=self.cache,
            cache_bytes=self.cache_bytes,
            remote_timeout_s=self.remote_timeout_s,
        )

    def __post_init__(self) -> None:
        _ = self.read  # which checks its own fields
        check(self, "workers", self.workers == "auto" or self.workers >= 1, "auto or an integer of at least 1")
        check(self, "checkpoint_every_steps", self.checkpoint_every_steps >= 1, "an integer of at least 1")
        check(self, "max_failures", self.max_failures >= 0, "an integer of at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Params(Strict):
    """The whole of params.yaml, one field a section."""

    data: DataConfig
    shard: ShardConfig
    families: tuple[str, ...]
    models: dict[str, AnyModel]
    features: FeaturesConfig = FeaturesConfig()
    train: TrainConfig
    tune: TuneConfig
    prior: PriorConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    report: ReportConfig
    retrain: RetrainConfig
    compute: ComputeConfig


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check the whole file.

    Raises:
        UserError: it is missing, is not YAML, or any key or value is wrong. The message holds one line for each
            mistake: file and line, key, what was expected, what was found, and for an unknown key the nearest one.
    """
    raw = _read(path)
    try:
        params = TypeAdapter(Params).validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        problems = list(explain(error, raw, Params))
    else:
        problems = list(_crosscheck(params))
    if problems:
        lines = (f"{path}:{line_of(raw, at)}: {'.'.join(map(str, at))}: {text}" for at, text in problems)
        raise UserError("\n".join(dict.fromkeys(lines)))
    return params


def with_overrides(model: ModelConfig, overrides: Mapping[str, Scalar]) -> ModelConfig:
    """`model` with some of its keys replaced, through the same checks as params.yaml.

    Raises:
        ValueError: an unknown key (with the nearest name), a wrong type, or a value out of range.
    """
    values = to_dict(model)
    for key, value in overrides.items():
        *parents, leaf = key.split(".")
        node: Any = values
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or leaf not in node or leaf == "kind":
            known = [name for name in _leaves(to_dict(model)) if not name.endswith("kind")]
            raise ValueError(f"unknown key{did_you_mean(key, known)}")
        node[leaf] = value
    try:
        changed: ModelConfig = TypeAdapter(AnyModel).validate_json(json.dumps(values))
    except ValidationError as error:
        raise ValueError(describe(error.errors()[0])) from None
    return changed


def fingerprint(config: object) -> str:
    """16 hex digits of a configuration's content, the same in every process."""
    text = json.dumps(TypeAdapter(Any).dump_python(config, mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        raw = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's folder, or restore it with Git") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = (error.problem or "expected YAML").strip().splitlines()[0]
        raise UserError(f"{path}:{line}: not valid YAML: {problem}") from None
    except YAMLError as error:  # a character that no YAML file may hold
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, Mapping):
        raise UserError(f"{path}:1: expected the sections {', '.join(Params.__slots__)}; found none")
    return raw


def _crosscheck(params: Params) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What no single section can see: names that must agree between sections."""
    if not params.families or len(set(params.families)) < len(params.families):
        yield ("families",), f"expected at least one name, each once, got {list(params.families)}"
    for i, family in enumerate(params.families):
        if family not in params.models:
            yield ("families", i), f"no model of this name: {family!r}{did_you_mean(family, params.models)}"
        elif family not in params.tune.spaces:
            yield ("tune", "spaces"), f"no entry for the family {family!r}; add one ({{}} for no sweep)"
    for family, space in params.tune.spaces.items():
        if family not in params.models:
            yield ("tune", "spaces", family), f"no model of this name{did_you_mean(family, params.models)}"
            continue
        for key, values in space.items():
            if not values:
                yield ("tune", "spaces", family, key), "expected at least one value"
            if len(set(values)) < len(values):
                yield ("tune", "spaces", family, key), f"expected each value once, got {list(values)}"
            for value in values:
                try:
                    with_overrides(params.models[family], {key: value})
                except ValueError as error:
                    yield ("tune", "spaces", family, key), str(error)
    search = params.tune.search
    if search.scheduler == "halving" and search.rungs and search.rungs[-1] >= params.train.epochs:
        yield ("tune", "search", "rungs"), f"expected epochs below train.epochs ({params.train.epochs})"


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
