"""DVC experiments that hold a family's model with other values, as if train@F and tune@F had run with them.

They are what `dvc exp save` would save after that, made without touching the work tree, and while a stage is running,
when DVC itself would not.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import PARAMS_FILE
from pipeline.errors import UserError
from pipeline.tune.config import Scalar
from pipeline.tune.git import Repository
from pipeline.tune.params_text import with_values
from pipeline.tune.projects import DVC_LOCK, NO_FIGURES, Project, project


@dataclass(frozen=True)
class Experiment:
    """What is published under one name.

    Attributes:
        values: of keys of params.yaml, such as `train.epochs`.
        message: of its commit.
        write: writes the outputs of train@F and tune@F below a folder, in the places that they have in the project;
            None: they are not made.
    """

    name: str
    values: Mapping[str, Scalar]
    message: str
    write: Callable[[Path], None] | None = None


def publish(family: str, experiments: Sequence[Experiment], *, running: bool) -> list[str]:
    """Publish experiments of the project in the working directory; one that is there with the same content stays.

    Each is there whole or not at all, whenever the process ends.

    Args:
        running: inside the stage tune@F, whose outputs are there, but not in dvc.lock.

    Returns:
        The names of those that were not there, or had another content.

    Raises:
        UserError: DVC or Git has no place for them, or it is not safe to say what they depend on.
    """
    from dvc.exceptions import DvcException

    try:
        repository = Repository.of(Path.cwd())
        prefix = Path.cwd().resolve().relative_to(repository.top.resolve())
        with project(family, prefix=prefix, running=running) as small:
            repository.index(small.folder / "index")
            return [one.name for one in experiments if _publish(one, repository, small, prefix)]
    except (DvcException, OSError) as error:
        raise UserError(str(error).strip().splitlines()[0]) from None


def _publish(experiment: Experiment, repository: Repository, small: Project, prefix: Path) -> bool:
    reference = repository.reference(experiment.name)
    names, gone = _write(experiment, small)
    index = Path(shutil.copyfile(small.folder / "index", small.folder / "index.of-one"))
    added, removed = ([(prefix / name).as_posix() for name in part] for part in (_files(small.root, names), gone))
    tree = repository.tree(index, small.folder, added, removed)
    if repository.tree_of(reference) == tree:
        return False
    repository.publish(reference, tree, experiment.message)
    return True


def _write(experiment: Experiment, small: Project) -> tuple[list[str], list[str]]:
    """Write the files of an experiment. Returns those that belong into Git, and those that it has not."""
    small.clear()
    for name in small.around.unmeasured:
        _write_text(small.root / name, NO_FIGURES)
    params = with_values(PARAMS_FILE.read_text(encoding="utf-8"), experiment.values)
    _write_text(small.root / PARAMS_FILE, params)
    names = [str(PARAMS_FILE), DVC_LOCK, *small.around.unmeasured]
    if experiment.write is not None:
        experiment.write(small.root)
        small.write_lock(small.commit())
        return [*names, *small.files], []
    small.write_lock({})
    for name in small.metrics:
        _write_text(small.root / name, NO_FIGURES)
    return [*names, *small.metrics], [name for name in small.files if name not in small.metrics]


def _files(root: Path, names: Iterable[str]) -> list[str]:
    """The files among and below `names`, relative to `root`."""
    paths = [path for name in names for path in (root / name, *(root / name).rglob("*"))]
    return [path.relative_to(root).as_posix() for path in paths if path.is_file()]


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
