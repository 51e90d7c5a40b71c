"""check params.yaml, and nothing else; the checks are those that every command makes first"""

from pipeline.config import Params


def main(params: Params, family: str | None) -> None:
    """Reaching this line means that the whole file was read and found right."""
