"""The command of a job: what it is, and what is added to it so that it runs in a fresh clone."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.ending import dvc_at
from pipeline.errors import UserError

EXAMPLE = "python -m pipeline submit --wait -- dvc exp run"
RESTORING = ("--pull", "--allow-missing")  # what is in the DVC remote is fetched if needed, and not made again


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        words: as the user gave it.
        at: of `run` or `repro` in it, where it is `dvc exp run` or `dvc repro`.
    """

    words: tuple[str, ...]
    at: int | None

    @classmethod
    def of(cls, words: Sequence[str]) -> "Command":
        """Raises UserError where there is none, or its results would not come home."""
        if not words:
            raise UserError(f"submit: nothing to run after `--`; for instance: {EXAMPLE}")
        command = cls(tuple(words), _at(words))
        if command.is_experiment and {"--queue", "--run-all"} & set(words):
            raise UserError("submit: --queue and --run-all put experiments off; submit one job for each instead")
        return command

    @property
    def is_experiment(self) -> bool:
        return self.at is not None and self.words[self.at] == "run"

    @property
    def name(self) -> str | None:
        """The name that it gives to its experiment."""
        if not self.is_experiment:
            return None
        for word, following in zip(self.words, (*self.words[1:], ""), strict=True):
            if word in {"-n", "--name"}:
                return following
            if word.startswith("--name="):
                return word.removeprefix("--name=")
        return None

    def in_clone(self, experiment: str, *, restoring: bool = True) -> list[str]:
        """As it runs on the head, where its experiment is called `experiment`.

        Args:
            restoring: the commit has a dvc.lock. Without one, DVC takes a stage without dependencies for one that ran
                and whose outputs may be missing.
        """
        if self.at is None:
            return list(self.words)
        added = [option for option in RESTORING if restoring and option not in self.words]
        if self.is_experiment and self.name is None:
            added += ["--name", experiment]
        return [*self.words[: self.at + 1], *added, *self.words[self.at + 1 :]]


def _at(words: Sequence[str]) -> int | None:
    dvc = dvc_at(words)
    if dvc is None:
        return None
    rest = [i for i in range(dvc + 1, len(words)) if not words[i].startswith("-")]
    first = [words[i] for i in rest[:2]]
    if first[:1] == ["repro"]:
        return rest[0]
    return rest[1] if first in (["exp", "run"], ["experiments", "run"]) else None
