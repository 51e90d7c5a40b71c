"""One file a DVC stage: take params and family, call one function, write outputs."""

from pathlib import Path

from pipeline.errors import UserError

DATA = Path("data")
SHARDS = DATA / "shards"
MODELS = Path("models")
FEATURES = DATA / "features"
RESULTS = Path("results")
ARTIFACTS = Path("artifacts")


def required(family: str | None) -> str:
    """The family that a stage was asked for.

    Raises:
        UserError: none was.
    """
    if family is None:
        raise UserError("this stage runs for one family: add --family F, a name under `families` in params.yaml")
    return family
