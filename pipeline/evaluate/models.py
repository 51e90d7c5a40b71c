"""The two models that are evaluated, baseline and best, and where they are the same one."""

from pathlib import Path

from pipeline import files
from pipeline.config import fingerprint
from pipeline.errors import UserError
from vae_core.models import Model
from vae_core.priors import CodePrior
from vae_core.priors.files import load_prior
from vae_core.serialize import CONFIG, WEIGHTS, ModelFileError, load_model

METRICS = "metrics.json"


def open_model(directory: Path) -> Model:
    """A model that a stage wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return load_model(directory)
    except ModelFileError as error:
        raise UserError(f"{error}; restore it with `dvc checkout`, or make it again with `dvc repro`") from None


def open_prior(directory: Path) -> CodePrior | None:
    """The prior over a model's codes that the stage wrote; None where the family has its prior in the model.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        if not (directory / WEIGHTS).exists() and files.read_json(directory / METRICS)["kind"] == "none":
            return None
        return load_prior(directory)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{directory}: {error}; restore it with `dvc checkout`, or make it again with `dvc repro`"
        ) from None


def digest(directory: Path) -> str:
    """16 hex digits of the weights and configuration in a model's directory."""
    return fingerprint([files.sha256(directory / name) for name in (WEIGHTS, CONFIG)])


def same_model(one: Path, other: Path) -> bool:
    """Whether two directories hold the same weights and configuration."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in (WEIGHTS, CONFIG))
