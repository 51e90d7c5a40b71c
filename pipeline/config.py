"""params.yaml -> frozen `Params`, strictly and once a process."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from pipeline import files
from pipeline.config_errors import describe, explain, line_of
from pipeline.data.config import DataConfig, ShardConfig
from pipeline.errors import UserError, did_you_mean
from pipeline.params_file import read_params, with_credentials
from pipeline.train.config import ComputeConfig, TrainConfig
from pipeline.tune.config import Range, Scalar, TuneConfig
from vae_core.config import ModelConfig, Scheduled, Strict, check, check_at_least, check_scheduled, to_dict
from vae_core.config.priors import PixelCNNConfig

PARAMS_FILE = Path("params.yaml")
FAMILY = re.compile(r"\w[\w.-]*")
COMPUTE = "PIPELINE_COMPUTE"  # environment: a JSON object; its keys of `compute` count instead of the file's

AnyModel: TypeAlias = Annotated[ModelConfig, Field(discriminator="kind")]


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

    Where a process runs is no matter of the commit, so a job on a cluster gives keys of `compute` in PIPELINE_COMPUTE.

    Raises:
        UserError: it is missing, is not YAML, or any key or value is wrong. The message holds one line for each
            mistake: file and line, key, what was expected, what was found, and for an unknown key the nearest one.
    """
    raw, here = read_params(path, Params.__slots__), _compute_here()
    values = {**raw, "compute": {**(raw.get("compute") or {}), **here}} if here else raw
    problems = list(with_credentials(values))  # alone, because other messages show what they found
    if not problems:
        try:
            params = TypeAdapter(Params).validate_json(json.dumps(values, default=str))
        except ValidationError as error:
            problems = list(explain(error, values, Params))
        else:
            problems = list(_crosscheck(params))
    if problems:
        places: dict[tuple[str | int, ...], str] = {("compute", key): COMPUTE for key in here}
        lines = (
            f"{places.get(at[:2], f'{path}:{line_of(raw, at)}')}: {'.'.join(map(str, at))}: {text}"
            for at, text in problems
        )
        raise UserError("\n".join(dict.fromkeys(lines)))
    return params


def _compute_here() -> dict[str, Any]:
    text = os.environ.get(COMPUTE)
    if not text:
        return {}
    try:
        here = files.parse_json(text)
    except ValueError:
        here = None
    if not isinstance(here, dict):
        got = "what may hold a password" if "@" in text else repr(text)
        raise UserError(f'{COMPUTE}: expected a JSON object such as {{"workers": 2}}, got {got}')
    return here


def apply_overrides(
    model: ModelConfig, train: TrainConfig, overrides: Mapping[str, Scalar]
) -> tuple[ModelConfig, TrainConfig]:
    """Both with some of their keys replaced, through the same checks as params.yaml; `train.KEY` is one of `train`.

    Raises:
        ValueError: an unknown key (with the nearest name), a wrong type, or a value out of range.
    """
    values = {"models": to_dict(model), "train": to_dict(train)}
    for key, value in overrides.items():
        _replace(values, key if key.startswith("train.") else f"models.{key}", key, value)
    return _checked(AnyModel, values["models"]), _checked(TrainConfig, values["train"])


def _replace(values: dict[str, Any], path: str, key: str, value: Scalar) -> None:
    *parents, leaf = path.split(".")
    node: Any = values
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or leaf not in node or leaf == "kind":
        known = [name.removeprefix("models.") for name in _leaves(values) if not name.endswith("kind")]
        raise ValueError(f"unknown key{did_you_mean(key, known)}")
    if isinstance(node[leaf], dict):
        inner = ", ".join(f"{key}.{name}" for name in node[leaf] if name != "kind")
        raise ValueError(f"expected a key with a single value; it has {inner}")
    node[leaf] = value


def _checked(kind: Any, values: Mapping[str, Any]) -> Any:
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values))
    except ValidationError as error:
        raise ValueError(describe(error.errors()[0])) from None


def fingerprint(config: object) -> str:
    """16 hex digits of a configuration's content, the same in every process."""
    text = json.dumps(TypeAdapter(Any).dump_python(config, mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _crosscheck(params: Params) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What no single section can see: names that must agree between sections."""
    if not params.families or len(set(params.families)) < len(params.families):
        yield ("families",), f"expected at least one name, each once, got {list(params.families)}"
    for i, family in enumerate(params.families):
        if not FAMILY.fullmatch(family):
            yield ("families", i), f"expected letters, digits, _, - and ., for folders get this name; got {family!r}"
        elif family not in params.models:
            yield ("families", i), f"no model of this name: {family!r}{did_you_mean(family, params.models)}"
        elif family not in params.tune.spaces:
            yield ("tune", "spaces"), f"no entry for the family {family!r}; add one ({{}} for no sweep)"
    for family, space in params.tune.spaces.items():
        if family not in params.models:
            yield ("tune", "spaces", family), f"no model of this name{did_you_mean(family, params.models)}"
            continue
        for key, values in space.items():
            at = ("tune", "spaces", family, key)
            if values == ():
                yield at, "expected at least one value"
            if params.tune.search.kind == "grid" and isinstance(values, Range) and values.values is None:
                yield at, "expected a list, or a range with a step, for tune.search.kind: grid"
            ends = (values.low, values.high) if isinstance(values, Range) else values
            if len(set(ends)) < len(ends):
                yield at, f"expected each value once, got {list(ends)}"
            for value in ends:
                try:
                    apply_overrides(params.models[family], params.train, {key: value})
                except ValueError as error:
                    yield at, str(error)
    search = params.tune.search
    if search.scheduler != "none" and search.rungs and search.rungs[-1] >= params.train.epochs:
        yield ("tune", "search", "rungs"), f"expected epochs below train.epochs ({params.train.epochs})"


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
