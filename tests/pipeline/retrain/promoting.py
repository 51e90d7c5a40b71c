"""A promotion about to be finished: a project, its origin, and the journal of a new commit with two tags."""

import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from dvc_project import ROOT, TinyProject, environment

from pipeline import files
from pipeline.retrain.promotion import JOURNAL, KEPT, Journal

TAGS = ("vae@v1.0.0", "vae#prod#1")
NAME = "retrain-of-a-test"
FINISH = "from pathlib import Path; from pipeline.retrain.promotion import finish; print(finish(Path.cwd()))"

SHIM = """\
#!/bin/sh
# Counts the commands that change a repository, and kills what calls it before or after one of them.
case " $* " in *" push "*|*" update-ref "*|*" merge "*) ;; *) exec "$REAL_GIT" "$@";; esac
echo x >> "$COUNT"
n=$(wc -l < "$COUNT")
[ "$KILL" = "before $n" ] && kill -9 $PPID && exit 1
"$REAL_GIT" "$@"
code=$?
[ "$KILL" = "after $n" ] && kill -9 $PPID
exit $code
"""


@dataclass(frozen=True)
class Promoting:
    """The project, and what is to be promoted in it."""

    project: TinyProject
    origin: Path
    old: str
    new: str
    tags: dict[str, str]

    @classmethod
    def make(cls, folder: Path) -> "Promoting":
        project = TinyProject.make(folder / "project")
        origin = folder / "origin.git"
        project.git("init", "-q", "--bare", "-b", "main", str(origin))
        project.git("remote", "add", "origin", str(origin))
        project.git("push", "-q", "origin", "main")
        old = project.git("rev-parse", "HEAD")
        (project.path / "results.json").write_text("1\n")
        project.commit("new results")
        new = project.git("rev-parse", "HEAD")
        tags = {}
        for tag in TAGS:
            project.git("tag", "-a", "-m", "new", tag)
            tags[tag] = project.git("rev-parse", tag)
            project.git("update-ref", f"{KEPT}/tags/{tag}", tag)
            project.git("tag", "-d", tag)
        project.git("update-ref", f"{KEPT}/commit", new)
        project.git("reset", "-q", "--hard", old)
        made = cls(project, origin, old, new, tags)
        made.write_journal()
        return made

    def write_journal(self, *, push: bool = True) -> None:
        journal = Journal(NAME, self.old, self.new, "main", self.tags, push)
        files.write_json(self.project.path / JOURNAL, asdict(journal))

    def finish(self, code: int = 0, **env: str) -> str:
        """`promotion.finish` in a process of its own."""
        return self.project.run(sys.executable, "-c", FINISH, code=code, PYTHONPATH=str(ROOT), **env)

    def finish_killed(self, shim: Path, kill: str) -> bool:
        """The same, killed by the program `shim` in place of Git. Whether it was."""
        count = shim.parent / "count"
        count.unlink(missing_ok=True)
        git = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
        env = environment() | {"KILL": kill}
        env |= {"PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}", "REAL_GIT": git, "COUNT": str(count)}
        process = subprocess.run(
            [sys.executable, "-c", FINISH], cwd=self.project.path, env=env, check=False,
            capture_output=True, timeout=120,
        )  # fmt: skip
        return process.returncode == -9

    def state(self) -> dict[str, object]:
        """What a user sees, here and at origin."""
        git = self.project.git
        at_origin = dict(line.split("\t")[::-1] for line in git("ls-remote", str(self.origin)).splitlines())
        return {
            "head": git("rev-parse", "HEAD"),
            "branch": git("symbolic-ref", "HEAD"),
            "tags": git("tag", "--list").split(),
            "status": git("status", "--porcelain"),
            "origin": at_origin["refs/heads/main"],
            "tags of origin": sorted(ref[10:] for ref in at_origin if ref.startswith("refs/tags/") and "^" not in ref),
        }
