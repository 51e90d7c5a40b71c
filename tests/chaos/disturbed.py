"""`dvc repro` of a project, started again whenever it ends unfinished, while its processes are killed to a plan."""

import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import chaos_project
import processes
import psutil
from e2e_project import Project, environment
from schedule import Planned

LOOK_EVERY_S = 0.2
BUSY = re.compile(r"exited with 7\b|working here")
ENDED = re.compile(r"failed to run: .* exited with (\d+)")
MOST_STARTS_IN_VAIN = 5


@dataclass
class Kill:
    """One that was done.

    Attributes:
        pids: of the processes killed.
        there: how many processes played the part.
        driver: pid of the stage's own process then.
        step: the sum of steps of the newest checkpoints of the stage's runs, and `of` how many the stage has in all.
        at_s: since the start of the first `dvc repro`.
        after: what was seen until a newer checkpoint was written, or the stage was done, `resumed_s` after the kill.
    """

    number: int
    stage: str
    family: str
    victim: str
    pids: list[int]
    there: int
    driver: int
    step: int
    of: int
    at_s: float
    resumed_s: float | None = None
    after: list[str] = field(default_factory=list)


class Disturbed:
    """One run of all stages under kills.

    Attributes:
        totals: (stage, family) -> steps that its runs have in the end.
        planned: kills that are still to come; in the end those whose stage was over too soon.
        defects: what must not happen.
    """

    def __init__(
        self,
        project: Project,
        families: Sequence[str],
        planned: Sequence[Planned],
        totals: dict[tuple[str, str], int],
        ray: Path,
        patience_s: float,
    ) -> None:
        self.project, self.ray, self.patience_s = project, ray, patience_s
        self.targets = [f"tune@{family}" for family in families]
        self.planned, self.expected = list(planned), totals
        self.totals: dict[tuple[str, str], int] = {}
        self.kills: list[Kill] = []
        self.defects: list[str] = []
        self.starts, self.in_vain = 0, 0
        self.log = project.path.with_suffix(".log")
        self._random = random.Random(len(planned))
        self._entered: set[tuple[str, str]] = set()
        self._stage: tuple[str, str] | None = None
        self._due_s: float | None = None
        self._killed_since_start = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun if not self._ended else self._ended - self._begun

    def run(self) -> None:
        """Until every stage is done, or nothing moves any more."""
        self._begun, self._ended, self._moved = time.monotonic(), 0.0, time.monotonic()
        self._start()
        while not self._over():
            time.sleep(LOOK_EVERY_S)
            processes.bury([self.dvc.pid])
            running = processes.ours()
            self._look(running)
            self._strike(running)
        self._ended = time.monotonic()

    def _start(self) -> None:
        self.starts += 1
        self._killed_since_start = False
        self._log_from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.dvc = subprocess.Popen(
                ["dvc", "repro", *self.targets], cwd=self.project.path, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env=environment(self.project.path) | self._folders,
            )  # fmt: skip

    @property
    def _folders(self) -> dict[str, str]:
        """Where temporary files lie; those of Ray below a short path, because sockets are among them."""
        self.ray.mkdir(exist_ok=True)
        return {"RAY_TMPDIR": str(self.ray), "TMPDIR": str(self.ray)}

    def _over(self) -> bool:
        """Whether it is all done; where `dvc` ended before, it is started again."""
        code = self.dvc.poll()
        if code is None and time.monotonic() - self._moved > self.patience_s:
            self._give_up()
            code = self.dvc.wait()
        if code is None:
            return False
        if code == 0:
            self._resumed("done")
            return True
        said = self._said()
        self._note(f"dvc ended with {code}{': ' + said if said else ''}")
        if not self._killed_since_start and not BUSY.search(self._printed()):
            self.in_vain += 1
            self.defects.append(f"dvc repro ended with {code} though nothing was killed: {said}")
        if self.in_vain >= MOST_STARTS_IN_VAIN:
            return True
        time.sleep(1)
        self._start()
        return False

    def _give_up(self) -> None:
        """End a run that hangs, as a user would in the end."""
        self.defects.append(f"nothing moved for {self.patience_s:.0f} s in {self._stage}: {self._said()}")
        self._note(f"hung for {self.patience_s:.0f} s and was ended")
        processes.end_all()
        self._killed_since_start, self._moved = True, time.monotonic()
        self.in_vain += 1

    def _look(self, running: Sequence[psutil.Process]) -> None:
        """Where the run stands, and whether it moved."""
        found = processes.stage(running)
        if found is None:
            return
        now = (found[0], found[1])
        if now != self._stage:
            self._resumed("the stage was done")
            self._enter(now)
        step = self._step()
        if step > self.totals.get(now, 0):
            self.totals[now] = step
            self._moved = time.monotonic()
        if self.kills and step > self.kills[-1].step and self._replaced(running, found[2]):
            healed = found[2].pid == self.kills[-1].driver
            self._resumed("the stage healed itself" if healed else "")

    def _enter(self, stage: tuple[str, str]) -> None:
        self._entered.add(stage)
        self._stage, self._moved, self._due_s = stage, time.monotonic(), None
        say(f"{stage[0]}@{stage[1]}")
        self.planned = [self._postponed(planned, stage) for planned in self.planned]

    def _postponed(self, planned: Planned, now: tuple[str, str]) -> Planned:
        """A kill whose stage was over too soon comes in this one, where its victim is part of it."""
        late = (planned.stage, planned.family) in self._entered and planned.victim in processes.PARTS[now[0]]
        return replace(planned, stage=now[0], family=now[1]) if late else planned

    def _step(self) -> int:
        assert self._stage is not None
        stage, family = self._stage
        own = re.compile(rf"{family}-{'trial-' if stage == 'tune' else ''}[0-9a-f]{{16}}")
        return sum(step for run, step in chaos_project.steps(self.project).items() if own.fullmatch(run))

    def _strike(self, running: Sequence[psutil.Process]) -> None:
        """Do the next kill of this stage, if its time has come and its victim is there."""
        planned = next((p for p in self.planned if (p.stage, p.family) == self._stage), None)
        found = processes.stage(running)
        if planned is None or found is None or not self._is_due(planned):
            return
        there = processes.victims(planned.victim, running, found[2], self.dvc.pid)
        if self._due_s is None and there:
            self._due_s = time.monotonic() + planned.delay_s
        if self._due_s is None or time.monotonic() < self._due_s or not there:
            return
        self._kill(planned, there, found[2].pid)

    def _is_due(self, planned: Planned) -> bool:
        assert self._stage is not None
        if planned.at is None:  # soon after the one before, whose recovery it disturbs
            return True
        unhurt = not self.kills or self.kills[-1].resumed_s is not None
        return unhurt and self._step() >= planned.at * self.expected[self._stage]

    def _kill(self, planned: Planned, there: Sequence[psutil.Process], driver: int) -> None:
        chosen = there if planned.victim == "group" else [self._random.choice(there)]
        for process in chosen:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert self._stage is not None
        pids = [process.pid for process in chosen]
        self.kills.append(
            Kill(
                len(self.kills) + 1, *self._stage, planned.victim, pids, len(there), driver, self._step(),
                self.expected[self._stage], round(self.seconds, 1),
            )
        )  # fmt: skip
        self.planned.remove(planned)
        self._due_s, self._killed_since_start = None, True
        self._moved = time.monotonic()
        kill = self.kills[-1]
        say(f"kill {kill.number}: {kill.victim} {pids} at step {kill.step} of {kill.of}")

    def _resumed(self, how: str = "") -> None:
        for kill in self.kills:
            if kill.resumed_s is None:
                kill.resumed_s = round(self.seconds - kill.at_s, 1)
                kill.after += [how] if how else []
                say(f"kill {kill.number}: went on after {kill.resumed_s} s")

    def _replaced(self, running: Sequence[psutil.Process], driver: psutil.Process) -> bool:
        """Whether others play the part of those killed last, as many as before: some parts live on for a while."""
        kill = self.kills[-1]
        there = processes.victims(kill.victim, running, driver, self.dvc.pid)
        outlived = kill.victim == "dvc" and driver.pid == kill.driver
        return len(there) >= kill.there and not outlived and not {process.pid for process in there} & set(kill.pids)

    def _note(self, text: str) -> None:
        say(text)
        for kill in self.kills:
            if kill.resumed_s is None:
                kill.after.append(text)

    def _printed(self) -> str:
        """By the `dvc` of now."""
        return self.log.read_bytes()[self._log_from :].decode(errors="replace")

    def _said(self) -> str:
        """The stage's exit code and its message."""
        printed = self._printed()
        code = ENDED.search(printed)
        errors = [line for line in printed.splitlines() if line.startswith("error: ")]
        if code and not errors:
            self.defects.append(f"the stage ended with {code[1]} and said nothing, in {self.log}")
        if "Traceback" in printed:
            self.defects.append(f"a traceback in {self.log} after byte {self._log_from}")
        return " ".join([f"code {code[1]}:" if code else "", *errors]).strip()


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
