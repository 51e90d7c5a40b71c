"""What a family is called in the registry, and the entries of dvc.yaml that `dvc artifacts get` finds models by."""

from collections.abc import Iterable

from pipeline.errors import UserError

STAGE = "prod"


def artifact_name(family: str) -> str:
    """The family's name in tags and in `dvc artifacts get`, which know no `_`.

    Raises:
        UserError: it cannot be one.
    """
    from gto.constants import name_re

    name = family.replace("_", "-")
    if not name_re.search(name):
        raise UserError(
            f"params.yaml: models.{family}: the registry takes names of letters, digits and _ that begin and end with "
            "a letter or digit; rename it"
        )
    return name


def artifact_path(family: str) -> str:
    """Where the stage export writes it, relative to the project."""
    return f"artifacts/{family}"


def entries(families: Iterable[str]) -> dict[str, dict[str, str]]:
    """The section `artifacts` of dvc.yaml.

    Raises:
        UserError: two families have one name.
    """
    found: dict[str, dict[str, str]] = {}
    for family in families:
        name, path = artifact_name(family), artifact_path(family)
        if name in found:
            other = found[name]["path"].removeprefix("artifacts/")
            raise UserError(f"params.yaml: models.{family}: its name in the registry is that of {other}; rename one")
        desc = f"the best {family} as safetensors and ONNX, with its card"
        found[name] = {"path": path, "type": "model", "desc": desc}
    return found
