"""Experiments as DVC keeps them in Git: a commit on the baseline, and refs/exps/<baseline>/<name> that points to it.

Only plumbing of Git's: index, work tree and HEAD stay as they are, and DVC may hold its own references at the time. A
ref appears at once and whole, after everything that it needs.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.git import git


@dataclass(frozen=True)
class Repository:
    """The repository of the project.

    Attributes:
        top: its work tree.
        directory: its `.git`.
        baseline: the commit that experiments hang on.
        home: another repository that the experiments go to: `dvc exp run --temp` works in a copy.
    """

    top: Path
    directory: Path
    baseline: str
    home: Path | None

    @classmethod
    def of(cls, project: Path) -> "Repository":
        """The repository around a folder.

        Raises:
            UserError: there is none with a work tree and a commit, or Git does not know who commits.
        """
        if shutil.which("git") is None:
            raise UserError("there is no program `git` here")
        if git(project, "rev-parse", "--is-inside-work-tree") != "true":
            raise UserError(f"{project}: in no work tree of Git")
        top = Path(git(project, "rev-parse", "--show-toplevel"))
        try:
            baseline = git(project, "rev-parse", "--verify", "--quiet", f"{_baseline()}^{{commit}}")
        except UserError:
            raise UserError("the Git repository has no commit yet that experiments could hang on") from None
        for who in ("AUTHOR", "COMMITTER"):
            try:
                git(project, "var", f"GIT_{who}_IDENT")
            except UserError:
                raise UserError("Git does not know who you are; set user.name and user.email") from None
        directory = Path(git(project, "rev-parse", "--absolute-git-dir"))
        return cls(top, directory, baseline, _home(directory))

    def reference(self, name: str) -> str:
        """Where DVC looks for the experiment `name`.

        Raises:
            UserError: it is no name for an experiment.
        """
        from dvc.repo.experiments.refs import ExpRefInfo

        reference = str(ExpRefInfo(self.baseline, name))
        try:
            git(self.top, "check-ref-format", reference)
        except UserError:
            raise UserError(f"{name!r} is no name for a DVC experiment") from None
        return reference

    def index(self, at: Path) -> None:
        """Write an index of the tracked files as they are in the work tree, changes included."""
        shutil.copyfile(self.directory / "index", at)
        self._run("add", "--update", "--", ":/", index=at)

    def tree(self, index: Path, folder: Path, added: Iterable[str], removed: Iterable[str]) -> str:
        """Write the tree of `index` with the files `added`, whose content is below `folder`, and without `removed`.

        Args:
            index: one that `index` wrote; it is changed.
            added, removed: relative to `top`.
        """
        self._run("update-index", "--force-remove", "-z", "--stdin", index=index, given=removed)
        self._run("update-index", "--add", "-z", "--stdin", index=index, given=added, folder=folder)
        return self._run("write-tree", index=index)

    def tree_of(self, reference: str) -> str | None:
        """The tree of the experiment that is there already."""
        try:
            return git(self.home or self.top, "rev-parse", "--verify", "--quiet", f"{reference}^{{tree}}")
        except UserError:
            return None

    def publish(self, reference: str, tree: str, message: str) -> None:
        """Commit `tree` on the baseline, and let `reference` point to it."""
        commit = git(self.top, "commit-tree", "--no-gpg-sign", "-p", self.baseline, "-m", message, tree)
        git(self.top, "update-ref", reference, commit)
        if self.home is not None:
            fetch = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")
            git(self.home, *fetch, str(self.directory), f"+{reference}:{reference}")

    def _run(self, *command: str, index: Path, given: Iterable[str] | None = None, folder: Path | None = None) -> str:
        """A command on the index `index`, of files below `folder` (the work tree without it)."""
        place = {"GIT_INDEX_FILE": str(index), "GIT_DIR": str(self.directory), "GIT_WORK_TREE": str(folder or self.top)}
        text = None if given is None else "".join(f"{name}\0" for name in given)
        return git(folder or self.top, *command, env=place, given=text or "")


def _baseline() -> str:
    """DVC says it to the stages of an experiment; elsewhere it is what is checked out."""
    return os.environ.get("DVC_EXP_BASELINE_REV") or "HEAD"


def _home(directory: Path) -> Path | None:
    """The project that started this experiment, where that is not this one."""
    root = os.environ.get("DVC_ROOT")
    if root is None or Path(git(Path(root), "rev-parse", "--absolute-git-dir")) == directory:
        return None
    return Path(root)
