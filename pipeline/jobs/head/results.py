"""How results go home: data to the DVC remote, experiments to origin."""

import shlex
import sys
from pathlib import Path

from .clone import experiments
from .job import STORAGE_FAILED, Failed, Job, say
from .processes import git, streamed


def deliver(job: Job, project: Path, env: dict[str, str]) -> None:
    """Push what was made to the DVC remote, and the experiments to origin."""
    remote = ["-r", job.remote] if job.remote else []
    made = {name for name, _ in experiments(project, env)}
    if job.experiment not in made and (job.save or git(project, "status", "--porcelain", env=env)):
        save(job, project, env)
        made.add(job.experiment)
    dvc("push", *remote, project=project, env=env)
    if job.experiment not in made:
        say("nothing changed, so there is no experiment to bring home")
        return
    others = sorted(made - {job.experiment})
    if others:
        dvc("exp", "push", "--force", *remote, "origin", *others, project=project, env=env)
        say(f"pushed {len(others)} more experiments: {' '.join(others)}")
    force = ["--force"] if job.replace else []
    dvc("exp", "push", *force, *remote, "origin", job.experiment, project=project, env=env)
    check_home(job, project, env)
    say(f"experiment {job.experiment} is at origin")


def check_home(job: Job, project: Path, env: dict[str, str]) -> None:
    """DVC leaves another experiment of the same name at origin as it is, and ends well.

    Raises:
        Failed: there is one.
    """
    reference = dict(experiments(project, env))[job.experiment]
    listed = git(project, "ls-remote", "origin", reference, env=env)
    if listed.partition("\t")[0] != git(project, "rev-parse", reference, env=env):
        raise Failed(
            f"origin has another experiment {job.experiment} on this commit, so the results are not home; they are "
            f"kept on the head; remove that one (dvc exp remove --git-remote origin {job.experiment}) and submit "
            "again, or choose another name"
        )


def save(job: Job, project: Path, env: dict[str, str]) -> None:
    """Make the clone, as it is, an experiment. `dvc exp save` would want outputs that nobody has needed to fetch."""
    git(project, "add", "--all", env=env)
    tree = git(project, "write-tree", env=env)
    message = f"{job.experiment}: {shlex.join(job.command)}"
    commit = git(project, "commit-tree", "--no-gpg-sign", "-p", job.commit, "-m", message, tree, env=env)
    git(project, "update-ref", f"refs/exps/{job.commit[:2]}/{job.commit[2:]}/{job.experiment}", commit, env=env)


def dvc(*arguments: str, project: Path, env: dict[str, str]) -> None:
    """Run DVC to send results home.

    Raises:
        Failed: it did not do it.
    """
    if streamed([sys.executable, "-m", "dvc", *arguments], project, env):
        what = " ".join(arguments[:2] if arguments[0] == "exp" else arguments[:1])
        raise Failed(
            f"`dvc {what}` failed, so the results are not home; they are kept on the head, and the same submission "
            "pushes them again", STORAGE_FAILED,
        )  # fmt: skip
