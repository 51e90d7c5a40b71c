"""A job before it is sent: what it is, its id, and the small folder that is sent."""

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.config import COMPUTE
from pipeline.errors import UserError
from pipeline.jobs import head
from pipeline.jobs.command import Command
from pipeline.jobs.head.clone import PATCH
from pipeline.jobs.source import Source
from pipeline.secret import secret_in

PREFIX = "exp-"
STOP_S = 60  # that a job has to end after SIGTERM, before Ray kills it
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Job:
    """A command on a source.

    Attributes:
        compute: keys of the section `compute`, as they are on the cluster.
        named: the experiment's name, where the user chose one.
    """

    source: Source
    command: Command
    compute: Mapping[str, Any]
    named: str | None = None

    @classmethod
    def of(cls, source: Source, command: Command, compute: Mapping[str, Any], name: str | None) -> "Job":
        """Raises UserError where a name is none, or something that would be told of the job looks like a secret."""
        if name and command.name and name != command.name:
            raise UserError(f"--name {name}: the command itself names its experiment {command.name}; leave one out")
        named = name or command.name
        if named is not None and not NAME.fullmatch(named):
            raise UserError(f"--name {named}: expected letters, digits, `-`, `_` and `.`")
        for what, text in (("the command", shlex.join(command.words)), ("--compute", json.dumps(dict(compute)))):
            kind = secret_in(text)
            if kind is not None:
                raise UserError(
                    f"{what} holds what looks like {kind}, which everybody with access to the cluster could read; "
                    "give it to the head: its environment, ~/.aws/credentials or an instance profile"
                )
        return cls(source, command, compute, named)

    @property
    def patch(self) -> str | None:
        """sha256 of the changes."""
        return hashlib.sha256(self.source.patch).hexdigest() if self.source.patch else None

    @property
    def id(self) -> str:
        """The same for the same commit, command, compute settings and changes."""
        what = [self.source.folder, self.command.words, dict(self.compute), self.patch, self.named, self.source.remote]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return f"{PREFIX}{self.source.commit[:12]}-{digest[:8]}"

    @property
    def experiment(self) -> str:
        return self.named or self.id

    @property
    def metadata(self) -> dict[str, str]:
        """What Ray keeps and shows of the job."""
        told = {
            "commit": self.source.commit,
            "command": shlex.join(self.command.words),
            "compute": json.dumps(dict(self.compute)),
            "experiment": self.experiment,
            "home": self.source.home if "://" not in self.source.home else self.source.origin,
        }
        return told | ({"patch": self.patch} if self.patch else {})

    @property
    def environment(self) -> dict[str, str]:
        return {
            COMPUTE: json.dumps(dict(self.compute)),
            "RAY_AUTH_MODE": "token",
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S),
        }

    def write(self, folder: Path) -> None:
        """All that is sent: the script for the head, job.json, and the changes."""
        shutil.copytree(Path(head.__file__).parent, folder / "head", ignore=shutil.ignore_patterns("__pycache__"))
        source = self.source
        described = {
            "id": self.id,
            "commit": source.commit,
            "origin": source.origin,
            "folder": source.folder,
            "command": self.command.in_clone(self.experiment, restoring=source.locked),
            "experiment": self.experiment,
            "replace": self.named is None,
            "save": self.command.at is not None and not self.command.is_experiment,
            "remote": source.remote,
            "patch": self.patch,
            "author": source.author,
            "email": source.email,
        }
        files.write_json(folder / "job.json", described)
        if source.patch:
            files.write_bytes(folder / PATCH, source.patch)


def bring_home(metadata: Mapping[str, str]) -> list[str]:
    """The commands that show a job's results at home."""
    return [f"dvc exp pull {metadata['home']} {metadata['experiment']}", "dvc exp show"]
