"""Which versions of a family's model there are, and which were in a stage: read from GTO's tags."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import UserError
from pipeline.git import git_lines
from pipeline.registry.names import STAGE, artifact_name

Bump = Literal["major", "minor", "patch"]

_FORMAT = "%00".join(
    f"%({field})"
    for field in ("refname:strip=2", "objecttype", "*objectname", "taggerdate:unix", "taggername", "contents:subject")
)


@dataclass(frozen=True)
class Version:
    """A version of a family's model.

    Attributes:
        name: that of the artifact in the registry: the family's with `-` for `_`.
        version: such as `v1.2.0`; the commit itself where a stage was given to one without a version.
        date: when it was registered, UTC.
        by, message: who did and what they said.
    """

    family: str
    name: str
    version: str
    commit: str
    date: datetime
    by: str
    message: str

    @property
    def tag(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Assignment:
    """That a version came into a stage."""

    version: Version
    stage: str
    date: datetime
    by: str
    message: str
    tag: str


@dataclass(frozen=True)
class Event:
    """One of GTO's tags. Where two have one date, a version is registered before it is assigned."""

    date: datetime
    rank: int
    counter: int
    action: str
    tag: str
    commit: str
    by: str
    message: str
    version: str | None
    stage: str | None


@dataclass(frozen=True)
class History:
    """All that the tags say of one family, the oldest first."""

    family: str
    name: str
    events: tuple[Event, ...]

    @classmethod
    def of(cls, root: Path, family: str) -> "History":
        """Read the tags of the repository at `root`."""
        name = artifact_name(family)
        patterns = (f"refs/tags/{name}@*", f"refs/tags/{name}#*")
        events = (_event(line) for line in git_lines(root, "for-each-ref", f"--format={_FORMAT}", *patterns))
        key = (event for event in events if event is not None)
        return cls(family, name, tuple(sorted(key, key=lambda event: (event.date, event.rank, event.counter))))

    @cached_property
    def versions(self) -> tuple[Version, ...]:
        """Those registered and not withdrawn, in the order of their numbers; none of a deprecated artifact."""
        from gto.versions import SemVer

        return tuple(sorted(self._replayed.registered.values(), key=lambda version: SemVer(version.version)))

    def assignments(self, stage: str = STAGE) -> tuple[Assignment, ...]:
        """Every time that a version came into the stage."""
        return tuple(each for each in self._replayed.assignments if each.stage == stage)

    def champion(self, stage: str = STAGE) -> Version | None:
        """The version that is in the stage."""
        held = self._replayed.held.get(stage)
        return next(reversed(held.values())) if held else None

    def earlier(self, stage: str = STAGE) -> tuple[Version, ...]:
        """Those that the stage goes back to, the nearest last: a version that came again undid what came between."""
        return tuple(self._replayed.stacks.get(stage, ())[:-1])

    def at(self, commit: str) -> Version | None:
        """The version of a commit."""
        return self._replayed.registered.get(commit)

    def next_version(self, bump: Bump) -> str:
        """One that no tag has had. The first is v1.0.0."""
        from gto.versions import SemVer

        had = [SemVer(event.version) for event in self.events if event.version is not None]
        if not had:
            return "v1.0.0"
        newest: Any = max(had)
        return str(newest.bump(**{f"bump_{bump}": True}).version)

    @property
    def next_counter(self) -> int:
        """GTO counts all assignments of an artifact, in whatever stage."""
        return 1 + max((event.counter for event in self.events), default=0)

    def next_date(self) -> int:
        """A second of the epoch after all that was: GTO and DVC know the order of tags by their seconds alone."""
        now = int(datetime.now(UTC).timestamp())
        return max([now, *(int(event.date.timestamp()) + 1 for event in self.events[-1:])])

    @cached_property
    def _replayed(self) -> "_State":
        state = _State(self.family, self.name)
        for event in self.events:
            state.take(event)
        return state if not self.events or self.events[-1].action != "deprecate" else _State(self.family, self.name)


class _State:
    """What the events up to one make."""

    def __init__(self, family: str, name: str) -> None:
        self.family, self.name = family, name
        self.registered: dict[str, Version] = {}  # by commit
        self.assignments: list[Assignment] = []
        self.held: dict[str, dict[str, Version]] = {}  # stage -> commit -> version, that assigned last at the end
        self.stacks: dict[str, list[Version]] = {}

    def take(self, event: Event) -> None:
        if event.action == "register":
            self.registered[event.commit] = self._version(event, event.version or "")
        elif event.action == "deregister":
            for commit in [c for c, version in self.registered.items() if version.version == event.version]:
                del self.registered[commit]
                for stage in self.held:
                    self._leave(stage, commit)
        elif event.action == "assign" and event.stage is not None:
            self._assign(event, event.stage)
        elif event.action == "unassign" and event.stage is not None:
            self._leave(event.stage, event.commit)

    def _assign(self, event: Event, stage: str) -> None:
        version = self.registered.get(event.commit) or self._version(event, event.commit)
        self.assignments.append(Assignment(version, stage, event.date, event.by, event.message, event.tag))
        held = self.held.setdefault(stage, {})
        held.pop(event.commit, None)
        held[event.commit] = version
        stack = self.stacks.setdefault(stage, [])
        if version in stack:
            del stack[stack.index(version) :]
        stack.append(version)

    def _leave(self, stage: str, commit: str) -> None:
        self.held.get(stage, {}).pop(commit, None)
        self.stacks[stage] = [version for version in self.stacks.get(stage, ()) if version.commit != commit]

    def _version(self, event: Event, version: str) -> Version:
        return Version(self.family, self.name, version, event.commit, event.date, event.by, event.message)


def champion(root: Path, family: str, stage: str = STAGE) -> Version | None:
    """The version of the family's model that is in the stage; None where none is.

    Args:
        root: a Git repository, with a work tree or bare.
    """
    return History.of(root, family).champion(stage)


def _event(line: str) -> Event | None:
    """What a tag says; None for one that is none of GTO's, which a tag without a message is not either."""
    from gto.tag import parse_name

    tag, kind, commit, seconds, by, message = line.split("\0")
    parsed: dict[str, Any] = parse_name(tag, raise_on_fail=False) if kind == "tag" else {}
    if "action" not in parsed:
        return None
    action = parsed["action"].value
    rank = ("create", "deprecate", "register", "deregister", "assign", "unassign").index(action)
    date = datetime.fromtimestamp(int(seconds), UTC)
    return Event(
        date,
        rank,
        parsed.get("counter", 0),
        action,
        tag,
        commit,
        by,
        message,
        parsed.get("version"),
        parsed.get("stage"),
    )


def known_stage(stage: str) -> str:
    """The name of a stage, as it is.

    Raises:
        UserError: GTO takes none of this name.
    """
    from gto.constants import name_re

    if not name_re.search(stage):
        raise UserError(f"--stage {stage}: expected letters and digits, with - or _ between them")
    return stage
