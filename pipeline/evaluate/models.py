"""The two models that are evaluated, baseline and best, and where they are the same one."""

from pathlib import Path

from pipeline.errors import UserError
from vae_core.models import Model
from vae_core.serialize import CONFIG, WEIGHTS, ModelFileError, load_model


def open_model(directory: Path) -> Model:
    """A model that a stage wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return load_model(directory)
    except ModelFileError as error:
        raise UserError(f"{error}; restore it with `dvc checkout`, or make it again with `dvc repro`") from None


def same_model(one: Path, other: Path) -> bool:
    """Whether two directories hold the same weights and configuration."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in (WEIGHTS, CONFIG))
