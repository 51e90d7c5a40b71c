"""The project's cluster files in a folder of their own, with a mistake planted in one of them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.cluster.check import Report, check

ROOT = Path(__file__).resolve().parents[2]
AWS, LOCAL = "cluster.yaml", "deploy/cluster-local.yaml"
JOB, CRON = "deploy/rayjob.yaml", "deploy/raycronjob.yaml"
FILES = (AWS, LOCAL, JOB, CRON)
COPIED = (*FILES, "constraints.txt", "pyproject.toml", "pipeline/cluster/spot_watch.py")


@dataclass(frozen=True, slots=True)
class Plant:
    """A mistake: `old` becomes `new`, once; `key` is then found wrong, at the line that `at` first stands in."""

    old: str
    new: str
    key: str
    says: str
    at: str
    file: str = AWS


def copied(folder: Path) -> Path:
    """What a check of the project's cluster files reads, with a token and a key in its home folder."""
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in (".ray/auth_token", ".ssh/id_ed25519"):
        path = folder / "home" / name
        path.parent.mkdir(parents=True)
        path.touch(mode=0o600)
    return folder


def planted(folder: Path, plant: Plant) -> tuple[Report, int]:
    """The report on the file with the mistake, and the line that it must name."""
    path = folder / plant.file
    text = path.read_text(encoding="utf-8")
    assert plant.old in text, f"{plant.old!r} is not in {plant.file}"
    text = text.replace(plant.old, plant.new, 1)
    path.write_text(text, encoding="utf-8")
    return check(path, folder), text[: text.index(plant.at)].count("\n") + 1
