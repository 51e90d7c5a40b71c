"""Which model is the champion of a family, and the files that a commit of the project has of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.git import text_at
from pipeline.registry.versions import champion

BEST = "models/{family}/best"
PRIOR = "models/{family}/prior"


@dataclass(frozen=True)
class Champion:
    """The model that a challenger has to beat.

    Attributes:
        version: such as v1.2.0; None: no version of the family is in the registry's stage, and this is HEAD's model.
    """

    family: str
    commit: str
    version: str | None

    def __str__(self) -> str:
        return f"{self.version or 'not registered'} ({self.commit[:10]})"


def champion_of(root: Path, family: str, head: str) -> Champion | None:
    """The registry's champion; where it has none, the model of HEAD's dvc.lock; None where that has none either."""
    found = champion(root, family)
    if found is not None:
        return Champion(family, found.commit, found.version)
    lock = text_at(root, head, "dvc.lock") or ""
    return Champion(family, head, None) if f" path: {BEST.format(family=family)}\n" in lock else None


def fetch(root: Path, found: Champion, to: Path) -> Path:
    """The champion's model in `to`/best, and its prior in `to`/prior, from DVC's cache or its remote.

    Raises:
        UserError: they cannot be had.
    """
    with opened(root, found.commit, f"the champion of {found.family}, {found}") as files:
        for path, name in ((BEST, "best"), (PRIOR, "prior")):
            files.get(path.format(family=found.family), str(to / name), recursive=True)
    return to


@contextmanager
def opened(root: Path, commit: str, what: str) -> Iterator[Any]:
    """The files of a commit, those that DVC keeps too.

    Raises:
        UserError: one cannot be had.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    try:
        yield DVCFileSystem(str(root), rev=commit)
    except (DvcException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{what}: neither DVC's cache nor its remote has it ({reason}); `dvc fetch`") from None
