"""What a check finds, and how checks are run: beside each other, each for a limited time, never with a traceback."""

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.addresses import without_passwords
from pipeline.errors import UserError

Level = Literal["ok", "warning", "broken"]

SECRETS = ("RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "GITHUB_TOKEN", "GH_TOKEN")
LIMIT_S = 10.0


@dataclass(frozen=True)
class Finding:
    """One line: how something is, and for a warning or what is broken, what would mend it."""

    level: Level
    what: str
    told: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:<9}{self.what}: {self.told}{f'; {self.remedy}' if self.remedy else ''}"


def ok(what: str, told: str) -> Finding:
    return Finding("ok", what, told)


def warning(what: str, told: str, remedy: str) -> Finding:
    return Finding("warning", what, told, remedy)


def broken(what: str, told: str, remedy: str) -> Finding:
    return Finding("broken", what, told, remedy)


def failed(what: str, error: UserError) -> Finding:
    """What a message of this project's says: `what and where; the remedy`."""
    told, _, remedy = str(error).splitlines()[0].partition("; ")
    return broken(what, told, remedy)


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Attributes:
        look: gives what it finds.
        limit_s: seconds after which it counts as broken, with `remedy`.
    """

    what: str
    look: Callable[[], Iterable[Finding]]
    limit_s: float = LIMIT_S
    remedy: str = "see whether this machine is overloaded"


@dataclass
class _Run:
    """A check at work; its thread is left behind when it takes too long."""

    check: Check
    found: list[Finding] = field(default_factory=list)

    def start(self) -> "_Run":
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def result(self) -> list[Finding]:
        self.thread.join(self.check.limit_s)
        found = list(self.found)
        if self.thread.is_alive():
            late = f"no answer in {self.check.limit_s:g} s"
            found.append(broken(self.check.what, late, self.check.remedy))
        return [replace(each, told=_clean(each.told), remedy=_clean(each.remedy)) for each in found]

    def _look(self) -> None:
        try:
            for finding in self.check.look():
                self.found.append(finding)
        except UserError as error:
            self.found.append(failed(self.check.what, error))
        except Exception as error:  # whatever it is, the other checks are still of use
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            remedy = f"this check itself failed; {self.check.remedy}"
            self.found.append(broken(self.check.what, f"{type(error).__name__}: {reason}", remedy))


def run_all(checks: Sequence[Check]) -> list[Finding]:
    """All that they find, in the order of the checks."""
    runs = [_Run(check).start() for check in checks]
    return [finding for run in runs for finding in run.result()]


def _clean(text: str) -> str:
    """Without secrets: passwords in addresses, and what the environment holds under a known name."""
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return without_passwords(text)
